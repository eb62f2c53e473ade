"""Stamp the repository's address into everything that shows it; the one constant is in pyproject.toml.

`make badges REPO=owner/name REF=main` writes the constant and restamps README and notebooks; run without arguments it
restamps from the constant as it is. Standard library only, so that it works before the course is installed.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

COLAB = "https://colab.research.google.com/github"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


def address(root: Path) -> tuple[str, str]:
    """Return `(repo, ref)` from pyproject.toml, such as `("owner/name", "main")`."""
    table = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["problama"]
    return table["repo"], table["ref"]


def badge(repo: str, ref: str, notebook: str) -> str:
    """Return the Markdown of one notebook's Colab badge."""
    return f"[![Open in Colab]({BADGE})]({COLAB}/{repo}/blob/{ref}/notebooks/{notebook})"


def restamp(text: str, repo: str, ref: str) -> str:
    """Return the text with every badge and every `REPO, REF = …` line pointing at `repo` and `ref`."""
    anywhere = rf"{re.escape(COLAB)}/[^/\s]+/[^/\s]+/blob/[^\s)]+?/notebooks/"
    text = re.sub(anywhere, f"{COLAB}/{repo}/blob/{ref}/notebooks/", text)
    return re.sub(r'REPO, REF = "[^"]*", "[^"]*"', f'REPO, REF = "{repo}", "{ref}"', text)


def stamp_all(root: Path, repo: str, ref: str) -> list[str]:
    """Write the address into pyproject.toml, the README and the notebooks; return the names of changed files."""
    def in_constant(text: str) -> str:
        text = re.sub(r'(?m)^repo = ".*"$', f'repo = "{repo}"', text)
        return re.sub(r'(?m)^ref = ".*"$', f'ref = "{ref}"', text)

    def in_notebook(text: str) -> str:
        notebook = json.loads(text)
        for cell in notebook["cells"]:
            cell["source"] = restamp("".join(cell["source"]), repo, ref).splitlines(keepends=True)
        return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"

    def in_text(text: str) -> str:
        return restamp(text, repo, ref)

    edits: list[tuple[Path, Callable[[str], str]]] = [(root / "pyproject.toml", in_constant)]
    edits += [(root / "README.md", in_text)]
    edits += [(path, in_notebook) for path in sorted((root / "notebooks").rglob("*.ipynb"))]
    changed = []
    for path, edit in edits:
        before = path.read_text(encoding="utf-8")
        after = edit(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed.append(path.relative_to(root).as_posix())
    return changed


def main() -> None:
    """Restamp from the command line: `badges.py [owner/name] [ref]`."""
    root = Path(__file__).resolve().parent.parent
    repo, ref = address(root)
    repo, ref = (sys.argv[1:] + [repo, ref][len(sys.argv) - 1 :])[:2]
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise SystemExit(f"No Problama: REPO = {repo!r}, expected owner/name, such as ada/no-problama.")
    changed = stamp_all(root, repo, ref)
    print(f"{repo} at {ref}: " + (", ".join(changed) if changed else "everything already points there"))


if __name__ == "__main__":
    main()
