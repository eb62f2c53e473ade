"""Notebook 01 keeps its promises: no equation without a number, one definition of each function, no widget noise."""

import ast
import pathlib
import re

import pytest
import torch

from problama_utils.grpo import advantages, losses

nbformat = pytest.importorskip("nbformat")
PATH = pathlib.Path(__file__).parents[2] / "notebooks" / "01_ppo_vs_grpo.ipynb"


@pytest.fixture(scope="module")
def cells():
    return nbformat.read(PATH, 4).cells


@pytest.fixture(scope="module")
def shown(cells):
    """The functions that the notebook shows in full, by name."""
    namespace = {"torch": torch}
    for cell in cells:
        if cell.cell_type == "code":
            tree = ast.parse(cell.source)
            tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
            exec(compile(tree, PATH.name, "exec"), namespace)
    return namespace


def test_every_displayed_equation_is_followed_by_a_cell_that_prints_a_number(cells):
    with_equation = [i for i, c in enumerate(cells) if c.cell_type == "markdown" and "$$" in c.source]
    assert sum(cells[i].source.count("$$") // 2 for i in with_equation) >= 12
    for i in with_equation:
        after = cells[i + 1]
        printed = "".join(o.get("text", "") for o in after.get("outputs", []) if o.output_type == "stream")
        assert after.cell_type == "code" and re.search(r"\d", printed), cells[i].source[-200:]


def test_functions_shown_in_the_notebook_compute_what_the_package_computes(shown):
    generator = torch.Generator().manual_seed(0)
    logp, old = (-3 * torch.rand(5, 7, generator=generator) for _ in range(2))
    a, rewards = torch.randn(5, 7, generator=generator), torch.rand(3, 4, generator=generator)
    close = torch.testing.assert_close
    close(shown["clipped_objective"](logp, old, a), losses.ppo_clip_objective(logp, old, a))
    close(shown["clipped_objective"](logp, old, a, 0.4), losses.ppo_clip_objective(logp, old, a, 0.4))
    deltas = advantages.generalised_advantages(a, logp, 0.9, 0.0)  # TD errors
    close(shown["gae"](deltas, 0.9, 0.8), advantages.generalised_advantages(a, logp, 0.9, 0.8))
    close(shown["group_advantages"](rewards), advantages.group_advantages(rewards))
    mask = (torch.arange(7)[None] < torch.tensor([7, 3, 1, 5, 7])[:, None]).long()
    close(shown["sequence_mean"](a, mask), losses.aggregate(a, mask, "sequence"))
    for estimator in ("k1", "k2", "k3"):
        close(shown["kl_estimate"](logp, old, estimator), losses.kl_estimate(logp, old, estimator))


def test_the_numbers_of_the_group_of_four_are_in_the_outputs(cells):
    text = "".join(o.get("text", "") for c in cells if c.cell_type == "code" for o in c.outputs)
    for number in ("0.866", "0.309", "8,030,261,248", "167,772,160", "standard errors"):
        assert number in text
    assert "nan, nan" in text  # the naive formula on a group with equal rewards, shown on purpose


def test_size_and_prose_suit_a_lesson(cells):
    code = [len([line for line in c.source.splitlines() if line.strip()]) for c in cells if c.cell_type == "code"]
    prose = sum(len(c.source.split()) for c in cells if c.cell_type == "markdown")
    assert 40 <= len(cells) <= 60 and sorted(code)[len(code) // 2] <= 10 and max(code) <= 40 and prose >= 2500
    assert all(cells[i].cell_type == "markdown" for i in (0, 2))


def test_outputs_hold_figures_but_no_widgets_paths_or_errors(cells):
    raw = PATH.read_text(encoding="utf-8")
    assert "widget" not in nbformat.read(PATH, 4).metadata and "jupyter.widget" not in raw
    assert not re.search(r"/(root|home|work|tmp)/", raw)
    kinds = [o.output_type for c in cells if c.cell_type == "code" for o in c.outputs]
    assert "error" not in kinds
    pictures = sum("image/png" in o.get("data", {}) for c in cells if c.cell_type == "code" for o in c.outputs)
    assert pictures >= 8  # the panel among them: where widgets do not run, its figure is shown


def test_the_panel_sends_its_figure_together_with_the_widgets(monkeypatch):
    pytest.importorskip("ipywidgets")
    from IPython import display

    from problama_utils.figures import try_it

    sent = []
    monkeypatch.setattr(display, "display", lambda data, raw: sent.append(data))
    try_it.show_panel()
    assert sent[0]["image/png"].startswith(b"\x89PNG") and "application/vnd.jupyter.widget-view+json" in sent[0]


def test_the_panel_follows_its_sliders():
    ipywidgets = pytest.importorskip("ipywidgets")
    from problama_utils.figures import try_it

    box = try_it._widgets()
    image = box.children[-1]
    assert isinstance(image, ipywidgets.Image)
    before = image.value
    box.children[0].children[0].children[0].value = 0.0  # the first reward
    assert image.value != before


def test_equal_rewards_move_nothing_in_the_panel():
    from problama_utils.figures.try_it import Knobs, after_steps

    state = after_steps(Knobs(rewards=(1.0, 1.0, 1.0, 1.0)))
    assert state["kl"] == 0 and torch.all(state["ratios"] == 1)
    assert after_steps(Knobs())["kl"] > 0
