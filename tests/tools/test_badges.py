"""The repository's address: one constant, stamped everywhere."""

import json
import shutil
from pathlib import Path

from problama_utils.config import course_root
from tools.badges import address, badge, stamp_all


def test_every_badge_and_set_up_cell_points_at_the_constant():
    root = course_root()
    repo, ref = address(root)
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        text = "".join("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"])
        assert badge(repo, ref, path.name) in text, path.name
        assert f'REPO, REF = "{repo}", "{ref}"' in text, path.name
        assert badge(repo, ref, path.name) in (root / "README.md").read_text(encoding="utf-8"), path.name


def test_one_command_restamps_them_all_and_a_second_run_changes_nothing(tmp_path):
    root = course_root()
    notebooks = [path.relative_to(root) for path in (root / "notebooks").rglob("0*.ipynb")]
    names = ["pyproject.toml", "README.md", *notebooks]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, tmp_path / name)
    changed = stamp_all(tmp_path, "ada/course", "v2")
    assert len(changed) == len(names) and address(tmp_path) == ("ada/course", "v2")
    everything = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*") if path.is_file()]
    assert not any("github/no-problama" in text or 'REPO, REF = "no-problama' in text for text in everything)
    assert sum('REPO, REF = \\"ada/course\\", \\"v2\\"' in text for text in everything) == len(notebooks)
    assert stamp_all(tmp_path, "ada/course", "v2") == []


def test_restamping_changes_nothing_else_in_a_notebook(tmp_path):
    source = course_root() / "notebooks" / "02_qlora_setup.ipynb"
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(course_root() / name, tmp_path / name)
    (tmp_path / "notebooks").mkdir()
    copy = shutil.copy(source, tmp_path / "notebooks")
    stamp_all(tmp_path, "ada/course", "v2")
    stamp_all(tmp_path, *address(course_root()))
    assert Path(copy).read_text(encoding="utf-8") == source.read_text(encoding="utf-8")
