"""Which releases the course was tested with, and which may run it: requirements.txt's pins, pyproject.toml's ranges.

Standard library only, so that it answers before anything is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

from problama_utils.config import Profile
from problama_utils.setup.install import UNSLOTH, name_and_range, ranges, requirements


@dataclass(frozen=True)
class Wanted:
    """A package that the course imports."""

    name: str
    ranges: str  # releases that may do, such as ">=5.17,<5.18"; "" = any
    tested: str  # the release that was run; "" = none named


def wanted_packages(profile: Profile) -> list[Wanted]:
    """Return what a profile imports: the package's own dependencies, and unsloth where it asks for it."""
    tested = tested_pins()
    packages = [Wanted(name, bounds, tested.get(name, "")) for name, bounds in _dependencies().items()]
    if profile.backend == "unsloth":
        packages += [Wanted(name, "", version) for name, version in (pin.split("==") for pin in UNSLOTH)]
    return packages


def tested_pins(lock: str = "requirements.txt") -> dict[str, str]:
    """Return a lock as name → version; empty where the package has no checkout around it."""
    try:
        return {name: pin.partition("==")[2] for name, pin in requirements(lock).items()}
    except OSError:
        return {}


def _dependencies() -> dict[str, str]:
    """Return name → range from pyproject.toml; without a checkout from the installed package's own metadata."""
    try:
        return ranges()
    except OSError:
        pass
    try:
        listed = metadata.requires("problama-utils") or []
    except (metadata.PackageNotFoundError, OSError, ValueError, KeyError):  # not there, or unreadable
        return {}
    return dict(name_and_range(line) for line in listed if "extra" not in line)
