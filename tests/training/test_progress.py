"""Between the steps: who is watched, what is kept of a group, how answers to held-out problems are counted."""

import threading

import matplotlib
import pytest

from problama_utils.training import callbacks as progress

matplotlib.use("Agg")


class ZMQInteractiveShell:
    """Has the name by which a Jupyter kernel's shell is known."""


@pytest.mark.parametrize(
    ("shell", "environment", "watched"),
    [
        (ZMQInteractiveShell(), {}, True),
        (ZMQInteractiveShell(), {"PROBLAMA_QUIET": "1"}, False),
        (ZMQInteractiveShell(), {"PYTEST_CURRENT_TEST": "notebooks/03.ipynb"}, False),
        (None, {}, False),
    ],
)
def test_the_live_curve_is_for_a_notebook_that_somebody_looks_at(shell, environment, watched, monkeypatch):
    import IPython

    for name in ("PROBLAMA_QUIET", "PYTEST_CURRENT_TEST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    assert progress.someone_watches() is watched


def test_the_live_curve_is_one_picture_that_is_replaced(monkeypatch):
    import IPython.display

    shown, replaced = [], []

    class Handle:
        def update(self, figure):
            replaced.append(figure)

    monkeypatch.setattr(IPython.display, "display", lambda figure, display_id: shown.append(figure) or Handle())
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_PICTURES", 0.0)
    curve = progress.LiveCurve()
    state = type("State", (), {"log_history": [{"step": 1, "reward": 1.0}]})()
    curve.on_log(None, state, None)
    state.log_history.append({"step": 2, "reward": 2.0})
    curve.on_log(None, state, None)
    assert len(shown) == 1 and len(replaced) == 1
    assert replaced[0].axes[0].lines[0].get_ydata().tolist() == [1.0, 2.0]


def test_a_watched_reward_pays_the_same_and_keeps_the_first_group(tmp_path):
    from problama_utils.rewards.slides import SLIDE_REWARDS

    writer = progress.RunWriter(tmp_path, 1, "test", threading.Event(), group=2, started=0.0)
    batch = {"completions": ["<answer>bee</answer>", "ant", "<answer>fly</answer>"], "answer": ["bee"] * 3,
             "aliases": [[]] * 3, "id": ["r1", "r1", "r2"]}
    for function in SLIDE_REWARDS:
        watched = writer.watch(function)
        assert watched(**batch) == function(**batch) and watched.__name__ == function.__name__
    kept = writer.first_group()
    assert [row["total"] for row in kept] == [3.0, 0.5] and {row["id"] for row in kept} == {"r1"}
    assert list(kept[0]) == ["id", "completion", *(function.__name__ for function in SLIDE_REWARDS), "total"]
