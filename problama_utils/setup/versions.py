"""Which releases the course was tested with, and which may run it: requirements.txt's pins, pyproject.toml's ranges.

Standard library only, so that it answers before anything is installed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata

from problama_utils.config import Profile, course_root
from problama_utils.setup.gpu import PLUGIN
from problama_utils.setup.install import UNSLOTH, name_and_range, ranges, requirements
from problama_utils.setup.install import fits as fits


@dataclass(frozen=True)
class Wanted:
    """A package that the course imports."""

    name: str  # normalised: lower case, hyphens
    ranges: str = ""  # releases that may do, such as ">=5.17,<5.18"; "" = any
    tested: str = ""  # the release that was run; "" = none named
    optional: bool = False  # used where it is there


def normalised(name: str) -> str:
    """Return a distribution's name as indexes compare it.

    >>> normalised("Scikit_Learn")
    'scikit-learn'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted_packages(profile: Profile) -> list[Wanted]:
    """Return what a profile imports: the package's own dependencies, and unsloth (and vLLM) where it asks for them."""
    tested = tested_pins()
    listed = [(normalised(name), ranges) for name, ranges in _dependencies()]
    packages = [Wanted(name, ranges, tested.get(name, "")) for name, ranges in listed]
    if profile.backend == "unsloth":
        for pin in UNSLOTH:
            name, version = pin.split("==")
            packages.append(Wanted(normalised(name), "", version))
        if profile.fast_inference:
            packages += [Wanted("vllm", optional=True), Wanted(PLUGIN, optional=True)]
    return packages


def tested_pins(lock: str = "requirements.txt") -> dict[str, str]:
    """Return a lock as name → version; empty where the package has no checkout around it."""
    try:
        return {normalised(name): pin.partition("==")[2] for name, pin in requirements(lock).items()}
    except OSError:
        return {}


def python_range() -> str:
    """Return pyproject.toml's `requires-python`."""
    found = re.search(r'^requires-python = "([^"]+)"', _text("pyproject.toml"), re.MULTILINE)
    return found[1] if found else ">=3.11,<3.14"


def _dependencies() -> list[tuple[str, str]]:
    """Return (name, ranges) from pyproject.toml, else from the installed package's own metadata."""
    try:
        return list(ranges().items())
    except OSError:
        pass  # no checkout: the installed package knows
    try:
        listed = metadata.requires("problama-utils") or []
    except (metadata.PackageNotFoundError, OSError, ValueError, KeyError):  # not there, or unreadable
        return []
    return [name_and_range(line) for line in listed if "extra" not in line]


def _text(name: str) -> str:
    try:
        return (course_root() / name).read_text(encoding="utf-8")
    except OSError:
        return ""
