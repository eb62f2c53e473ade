"""The flow of verdicts: counted right, drawn without overlap, refused for different questions."""

import matplotlib
import pandas as pd
import pytest

from problama_utils.figures.flow import draw_flow, flow_counts

matplotlib.use("Agg")
BEFORE = pd.Series([True, True, False, False, False], index=list("abcde"))
AFTER = pd.Series([False, True, True, True, False], index=list("abcde"))


def test_changes_are_counted_by_question_whatever_the_order():
    expected = {(True, True): 1, (True, False): 1, (False, True): 2, (False, False): 1}
    assert flow_counts(BEFORE, AFTER) == flow_counts(BEFORE, AFTER.iloc[::-1]) == expected


def test_other_questions_are_refused():
    with pytest.raises(ValueError, match="same questions"):
        flow_counts(BEFORE, AFTER.drop("a"))


@pytest.mark.parametrize("after", [AFTER, BEFORE, ~BEFORE])
def test_ribbons_keep_their_thickness_and_do_not_leave_the_picture(after):
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    draw_flow(ax, BEFORE, after, names=("base", "tuned"))
    for ribbon in ax.collections:
        points = ribbon.get_paths()[0].vertices
        assert points[:, 1].min() >= -1e-9 and points[:, 1].max() <= 1.06 + 1e-9
    assert len(ax.collections) == sum(count > 0 for count in flow_counts(BEFORE, after).values())
    plt.close("all")
