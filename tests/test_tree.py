"""The tree is the first documentation: the README shows it, imports go down the floors, and a few walls hold."""

import ast
import re
import subprocess
import sys
from functools import cache
from importlib import import_module

import nbformat
import pytest

from problama_utils.config import course_root

ROOT = course_root()
PACKAGE = ROOT / "problama_utils"
PATHS = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
         for path in sorted(PACKAGE.rglob("*.py"))}
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())
# CONTRIBUTING.md explains them. The longest name that fits decides: `setup` prepares (below) and checks (preflight).
FLOORS = {"": 0, "setup.pip_causes": 0, "setup.install": 0, "setup.gpu": 1, "engine": 1, "config": 2, "setup": 3,
          "tasks": 4, "rewards": 5, "grpo": 5, "model": 5, "monitoring": 6, "evaluation": 6, "figures": 6,
          "exercises": 6, "setup.preflight": 6, "training": 7, "setup.__main__": 7}  # fmt: skip
# Importable without torch, so that data, logs and checks work on any machine within a second.
WITHOUT_TORCH = ["config", "tasks", "tasks.registry", "tasks.answers", "rewards", "rewards.slides",
                 "rewards.truth_tables", "setup.preflight", "setup.install", "setup.machine", "setup.hub", "model",
                 "monitoring.curves", "monitoring.diagnosis", "monitoring.bands", "evaluation.records",
                 "evaluation.uncertainty", "training", "figures", "exercises"]  # fmt: skip
# Public although no notebook uses it: name → where it is documented as such.
DOCUMENTED = {}


@cache
def imports_of(module):
    """Modules of the package that a module imports, at once or late, in its own file."""
    found = set()
    tree = ast.parse(PATHS[module].read_text(encoding="utf-8"))
    for_types = {node for block in ast.walk(tree) if isinstance(block, ast.If)
                 and getattr(block.test, "id", "") == "TYPE_CHECKING" for node in block.body}
    for node in set(ast.walk(tree)) - for_types:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("problama_utils"):
            inner = {f"{node.module}.{name.name}" for name in node.names} & set(PATHS)
            found |= inner or {node.module}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name in PATHS}
    return frozenset(found - {module})


@cache
def reached_from(module):
    found, waiting = set(), [module]
    while waiting:
        for needed in imports_of(waiting.pop()) - found:
            found.add(needed)
            waiting.append(needed)
    return frozenset(found)


def inside(module):
    return module.removeprefix("problama_utils").lstrip(".")


def floor(module):
    name = inside(module)
    return FLOORS[max((known for known in FLOORS if not known or f"{name}.".startswith(f"{known}.")), key=len)]


def room(module):
    return inside(module).split(".")[0]


def test_the_top_of_the_package_is_seen_at_a_glance():
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= 15


def test_the_readme_shows_every_room_and_none_that_is_not_there():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## What is where")[1].split("```")[1]
    shown = re.findall(r"^    (\w+)(?:/|\.py) ", tree, re.MULTILINE)
    assert shown and sorted(shown) == sorted([*ROOMS, "config"])
    for folder in re.findall(r"^(\w+)/ ", tree, re.MULTILINE):
        assert (ROOT / folder).is_dir()


@pytest.mark.parametrize("module", PATHS)
def test_imports_go_down_the_floors(module):
    upwards = {needed for needed in imports_of(module)
               if floor(needed) > floor(module) or (floor(needed) == floor(module) and room(needed) != room(module))}
    assert not upwards


def test_there_are_no_import_cycles_late_imports_included():
    assert not [module for module in PATHS if module in reached_from(module)]


@pytest.mark.parametrize("module", [module for module in PATHS if room(module) == "evaluation"])
def test_evaluation_never_reaches_rewards_or_training(module):
    assert not {room(needed) for needed in reached_from(module)} & {"rewards", "training"}


def test_only_model_training_and_figures_enter_the_engine():
    assert {room(module) for module in PATHS if any(room(needed) == "engine" for needed in imports_of(module))} <= {
        "engine", "model", "training", "figures"}


@pytest.mark.parametrize("module", PATHS)
def test_a_module_can_be_read_in_one_sitting_and_says_what_it_is_for(module):
    text = PATHS[module].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 450
    assert ast.get_docstring(ast.parse(text)) or PATHS[module].name == "__main__.py"


def test_a_face_offers_what_notebooks_use_and_nothing_else():
    used = set()
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            tree = ast.parse(cell.source if cell.cell_type == "code" else "")
            used |= {f"{inside(node.module)}.{name.name}" for node in ast.walk(tree)
                     if isinstance(node, ast.ImportFrom) and node.module.startswith("problama_utils.")
                     for name in node.names}
    offered = {f"{name}.{public}" for name in ROOMS for public in getattr(import_module(f"problama_utils.{name}"),
                                                                          "__all__", [])}
    assert offered - used == set(DOCUMENTED)
    modules = {f"{room(module)}.{module.rsplit('.', 1)[1]}" for module in PATHS if inside(module).count(".") == 1}
    assert {name for name in used if name.split(".")[0] in ROOMS} - offered <= modules


@pytest.mark.parametrize("name", ROOMS)
def test_every_name_of_a_face_is_there(name):
    face = import_module(f"problama_utils.{name}")
    assert all(getattr(face, public) is not None for public in getattr(face, "__all__", []))
    with pytest.raises(AttributeError, match="no_such_name"):
        face.no_such_name  # noqa: B018


def test_notebooks_import_from_few_places_all_of_them_faces():
    places = {}
    for path in sorted((ROOT / "notebooks").glob("0*.ipynb")):
        places[path.stem[:2]] = set(re.findall(r"from (problama_utils[a-z_.]*)", path.read_text(encoding="utf-8")))
    assert set().union(*places.values()) <= {f"problama_utils.{name}" for name in ROOMS}
    assert len(set().union(*places.values())) <= 12 and max(map(len, places.values())) <= 9


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_needs_no_torch_imports_none(module):
    program = f"import problama_utils.{module}, sys; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", program]).returncode == 0
