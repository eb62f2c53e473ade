"""Pages for readers: links lead somewhere, programs that are named exist, figures have their source."""

import re
from importlib.util import find_spec

import pytest

from problama_utils.config import course_root

ROOT = course_root()
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "assets").glob("*.md")) + sorted((ROOT / "assets").glob("*/README.md"))
FOLDERS = "assets|benchmarks|notebooks|problama_utils|tests|tools"


def text_of(page):
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_programs_and_paths_of_a_page_are_there(page):
    text = text_of(page)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]
    paths = re.findall(rf"(?<![\w/])(?:{FOLDERS})/[\w./]*\w(?:\.\w+)?(?![\w/<*{{])", text.replace("\\", "/"))
    assert {path for path in paths if not (ROOT / path).exists()} <= {"assets/results/robust.json"}  # hours to make
    assert not [name for name in re.findall(r"python -m ((?:tools|problama_utils)[\w.]*)", text) if not find_spec(name)]
    assert not [name for name in re.findall(r"`(problama_utils(?:\.\w+)+)`", text) if page.name != "CHANGELOG.md"
                and not find_spec(name)]


def test_every_target_that_is_named_is_in_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    assert set(re.findall(r"`?\bmake ([a-z-]+)[`\s]", "".join(map(text_of, PAGES[:2])))) <= targets


def test_the_readme_is_short_and_its_percentages_stand_on_the_page_of_results():
    readme = text_of(ROOT / "README.md")
    assert len(readme.splitlines()) <= 110
    seen = re.findall(r"\d+\.\d+ %", readme)
    assert seen and set(seen) <= set(re.findall(r"\d+\.\d+ %", text_of(ROOT / "assets/results/README.md")))


def test_the_floors_of_the_contributors_page_are_those_that_are_checked():
    from test_tree import FLOORS

    rows = re.findall(r"^\| (\d) \| (.+?) \|", text_of(ROOT / "CONTRIBUTING.md"), re.MULTILINE)
    shown = {int(floor): text for floor, text in rows}
    assert sorted(shown) == sorted(set(FLOORS.values()))
    for name, floor in FLOORS.items():
        assert name in ("", "setup.__main__") or name.replace(".", "/") in shown[floor], name
