"""The repository's address: one constant, stamped everywhere."""

import json
import shutil

from problama_utils.badges import address, badge, stamp_all
from problama_utils.config import course_root


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
    (tmp_path / "notebooks").mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(root / name, tmp_path / name)
    for path in (root / "notebooks").glob("*.ipynb"):
        shutil.copy(path, tmp_path / "notebooks")
    changed = stamp_all(tmp_path, "ada/course", "v2")
    assert len(changed) == 8 and address(tmp_path) == ("ada/course", "v2")
    everything = "".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*") if path.is_file())
    assert "github/no-problama" not in everything and 'REPO, REF = "no-problama' not in everything
    assert stamp_all(tmp_path, "ada/course", "v2") == []
