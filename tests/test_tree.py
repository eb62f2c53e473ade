"""The tree is the first documentation: the README lists every module, and imports only go down the floors."""

import ast
import re

import pytest

from problama_utils.config import course_root

ROOT = course_root()
MODULES = sorted(path.stem for path in (ROOT / "problama_utils").glob("*.py") if path.stem != "__init__")
# Ground floor: importable without torch, so that data, logs and checks work on any machine within a second.
GROUND = ["answers", "badges", "config", "diagnosis", "errors", "gated_model", "gpu", "install", "machine",
          "monitoring", "preflight", "problems", "prompts", "records", "rewards", "run_folder", "seed_bands",
          "tested_versions", "truth_tables", "uncertainty"]


def imports_of(module):
    """Modules of the package that a module imports when it is itself imported (late imports do not count)."""
    tree = ast.parse((ROOT / "problama_utils" / f"{module}.py").read_text(encoding="utf-8"))
    found = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("problama_utils"):
            inner = node.module.removeprefix("problama_utils").lstrip(".")
            found |= {inner.split(".")[0]} if inner else {name.name for name in node.names}
    return found & set(MODULES)


def test_the_readme_has_one_remark_for_every_module_and_none_for_others():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## What is where")[1]
    listed = re.findall(r"^\| `(\w+)` \|", tree, re.MULTILINE)
    assert sorted(listed) == MODULES


@pytest.mark.parametrize("module", GROUND)
def test_the_ground_floor_imports_without_torch(module):
    import subprocess
    import sys

    program = f"import problama_utils.{module}, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_imports_have_no_cycles():
    graph = {module: imports_of(module) for module in MODULES}
    done: set[str] = set()
    while graph:
        free = [module for module, needs in graph.items() if needs <= done]
        assert free, f"these modules import each other: {sorted(graph)}"
        done |= set(free)
        graph = {module: needs for module, needs in graph.items() if module not in done}


def test_rewards_and_evaluation_stand_on_opposite_sides_of_a_wall():
    assert "rewards" not in imports_of("evaluation") and "evaluation" not in imports_of("training")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_can_be_read_in_one_sitting_and_says_what_it_is_for(module):
    text = (ROOT / "problama_utils" / f"{module}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 450
    assert ast.get_docstring(ast.parse(text))
