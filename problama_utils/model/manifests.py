"""Folders that can tell whether they are whole: a manifest with the SHA-256 of every file, written last."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

MANIFEST = "manifest.json"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_sha256(path: Path, expected: str) -> bool:
    """Tell whether a file is there, can be read and has that checksum."""
    try:
        return file_sha256(path) == expected
    except OSError:
        return False


def write_manifest(folder: Path, **about: str) -> None:
    """Write the manifest of a finished folder, in one step: what it is `about`, and `sha256`, file → checksum."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(MANIFEST))
    manifest = {**about, "sha256": {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}}
    part = folder / (MANIFEST + ".part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, folder / MANIFEST)


def damaged_files(folder: Path) -> list[str]:
    """Return the files in `folder` that are missing or differ from its manifest (empty = sound), or the manifest
    itself where it is missing, cannot be read or lists nothing.
    """
    try:
        sums = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        sums = {}
    return [name for name, expected in sums.items() if not has_sha256(folder / name, expected)] if sums else [MANIFEST]
