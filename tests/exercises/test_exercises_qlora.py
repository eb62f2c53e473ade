"""Notebook 02's exercises: "not yet" on the stubs, green on the solutions, and each usual mistake named."""

import ast
import subprocess
import sys

import nbformat
import pytest
import torch

from problama_utils.config import course_root
from problama_utils.exercises import qlora_setup as checks

NOTEBOOKS = course_root() / "notebooks"
EXERCISES = {
    "quantise_block": checks.check_quantise_block,
    "price": checks.check_bits_per_weight,
    "merge": checks.check_merge,
    "largest_rank": checks.check_largest_rank,
}


def definitions(path):
    """The exercise functions that a notebook defines, ready to call."""
    found = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and any(f"def {name}(" in cell.source for name in EXERCISES):
            functions = [node for node in ast.parse(cell.source).body if isinstance(node, ast.FunctionDef)]
            exec(compile(ast.Module(functions, []), str(path), "exec"), {"torch": torch}, found)
    return found


@pytest.mark.parametrize("name", EXERCISES)
def test_stubs_are_not_yet_and_solutions_are_green(name):
    stubs = definitions(NOTEBOOKS / "02_qlora_setup.ipynb")
    solutions = definitions(NOTEBOOKS / "solutions" / "02_qlora_setup_solutions.ipynb")
    assert EXERCISES[name](stubs[name]).status == "not yet"
    verdict = EXERCISES[name](solutions[name])
    assert verdict, verdict.message


def truncating(values, code):
    scale = values.abs().max()
    below = (values[:, None] / scale >= code).long().sum(1) - 1
    return scale * code[below.clamp(min=0)]


def signed_scale(values, code):
    return values.max() * code[(values[:, None] / values.max() - code).abs().argmin(1)]


def per_rank(shapes):
    return 16 * sum(map(sum, shapes))


@pytest.mark.parametrize(("check", "wrong", "words"), [
    (checks.check_quantise_block, truncating, "code −1, 0, 1"),
    (checks.check_quantise_block, signed_scale, "code −1, 0, 1"),
    (checks.check_bits_per_weight, lambda block, second: 4 + 32 / block, "QLoRA"),
    (checks.check_bits_per_weight, lambda block, second: 4 + 8 / block + 32 / (block * 256), "fp32 scales"),
    (checks.check_merge, lambda weight, a, b, alpha: weight + b @ a, "α = 4"),
    (checks.check_merge, lambda weight, a, b, alpha: weight + alpha / b.shape[0] * b @ a, "r is the number of rows"),
    (checks.check_merge, lambda weight, a, b, alpha: weight + alpha * b @ a, "r is the number of rows"),
    (checks.check_largest_rank, lambda shapes, base, memory: (memory - base) // per_rank(shapes), "alone is too large"),
    (checks.check_largest_rank, lambda shapes, base, memory: max(0, (memory - base) // per_rank(shapes[:1])), "Llama"),
    (checks.check_largest_rank, lambda shapes, base, memory: max(0, round((memory - base) / per_rank(shapes))),
     "one 10 × 6"),
])  # fmt: skip
def test_a_usual_mistake_is_named(check, wrong, words):
    verdict = check(wrong)
    assert verdict.status == "failed"
    assert words in verdict.message


def test_the_checks_import_without_torch():
    program = "import sys, problama_utils.exercises.qlora_setup; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=course_root()).returncode == 0
