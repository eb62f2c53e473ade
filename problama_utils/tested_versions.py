"""Which releases the course was tested with, and which may run it: requirements.txt's pins, pyproject.toml's ranges.

Standard library only, so that it answers before anything is installed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata

from problama_utils.config import Profile, course_root
from problama_utils.install import UNSLOTH, name_and_range, ranges, requirements


@dataclass(frozen=True)
class Wanted:
    """A package that the course imports."""

    name: str  # normalised: lower case, hyphens
    ranges: str = ""  # releases that may do, such as ">=5.17,<5.18"; "" = any
    tested: str = ""  # the release that was run; "" = none named


def normalised(name: str) -> str:
    """Return a distribution's name as indexes compare it.

    >>> normalised("Scikit_Learn")
    'scikit-learn'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def release(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version; local and pre-release parts fall away.

    >>> release("2.13.0+cpu")
    (2, 13, 0)
    """
    return tuple(int(part) for part in re.match(r"v?(\d+(?:\.\d+)*)?", version)[1].split(".")) if version[:1] else ()


def fits(version: str, ranges: str) -> bool:
    """Tell whether a version lies within comma-separated bounds (>=, <=, >, <, ==, !=).

    >>> fits("4.8.5", ">=4.8,<5"), fits("5.0.0", ">=4.8,<5")
    (True, False)
    """
    for bound in filter(None, (part.strip() for part in ranges.split(","))):
        sign, limit = re.fullmatch(r"(>=|<=|==|!=|>|<)\s*(\S+)", bound).groups()
        left, right = _same_length(release(version), release(limit))
        holds = {">=": left >= right, "<=": left <= right, "==": left == right, "!=": left != right,
                 ">": left > right, "<": left < right}  # fmt: skip
        if not holds[sign]:
            return False
    return True


def _same_length(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    width = max(len(left), len(right))
    return left + (0,) * (width - len(left)), right + (0,) * (width - len(right))


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
            packages.append(Wanted("vllm"))
    return packages


def tested_pins() -> dict[str, str]:
    """Return requirements.txt as name → version; empty where the package stands without its checkout."""
    try:
        return {normalised(name): pin.partition("==")[2] for name, pin in requirements().items()}
    except OSError:
        return {}


def python_range() -> str:
    """Return pyproject.toml's `requires-python`."""
    found = re.search(r'^requires-python = "([^"]+)"', _text("pyproject.toml"), re.MULTILINE)
    return found[1] if found else ">=3.11,<3.15"


def _dependencies() -> list[tuple[str, str]]:
    """Return (name, ranges) from pyproject.toml, else from the installed package's own metadata."""
    try:
        return list(ranges().items())
    except OSError:
        pass  # no checkout: the installed package knows
    try:
        listed = metadata.requires("problama-utils") or []
    except metadata.PackageNotFoundError:
        return []
    return [name_and_range(line) for line in listed if "extra" not in line]


def _text(name: str) -> str:
    try:
        return (course_root() / name).read_text(encoding="utf-8")
    except OSError:
        return ""
