"""The tables themselves: they accept our judge, turn red for a naive one, and read without colour or HTML."""

import doctest
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from problama_utils.rewards import truth_tables, truth_view
from problama_utils.rewards.truth_tables import READING, REWARDS, TABLES, run_table
from problama_utils.rewards.truth_view import show_table
from problama_utils.tasks.answers import grade, lenient_answer


def without_dotall(completion):
    found = re.findall("<answer>(.*?)</answer>", completion, re.IGNORECASE)
    strict = found[0].strip() or None if len(found) == 1 else None
    return strict, lenient_answer(completion), grade(strict, ["bee", "honeybee", "bees"]).value


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_our_own_judge_agrees_with_every_row(table):
    assert [outcome.row.why for outcome in run_table(table) if not outcome.ok] == []


def test_a_judge_without_dotall_is_found_out_by_the_row_that_says_so():
    wrong = [outcome.row.why for outcome in run_table(replace(READING, judge=without_dotall)) if not outcome.ok]
    assert "several lines: the pattern needs DOTALL" in wrong and "as asked" not in wrong


def test_a_judge_that_takes_the_best_of_several_pairs_is_found_out_by_an_attack():
    def any_pair(completion):
        right = "<answer>bee</answer>" in str(completion)
        return (2.0 if right else 0.0), 0.5, 0.5, (3.0 if right else 1.0)

    wrong = {outcome.row.why for outcome in run_table(replace(REWARDS, judge=any_pair)) if not outcome.ok}
    assert {"one pair per guess", "nested", "a second pair far behind"} <= wrong


def test_the_view_says_right_and_wrong_without_colour_and_wrong_rows_are_listed_in_text():
    good, bad = show_table(READING), show_table(replace(READING, judge=without_dotall))
    assert repr(good) == f"reading: {len(READING.rows)} of {len(READING.rows)} rows as they should be ✓"
    assert "✗ none, expected bee" in repr(bad) and "DOTALL" in repr(bad) and str(bad).endswith("✗")
    page = bad._repr_html_()
    assert page.count("✗") > 3 and page.count("✓") > 50 and "#c0392b" in page and "#c0392b" not in good._repr_html_()


def test_the_page_escapes_tags_names_invisible_characters_and_is_the_same_each_time():
    page = show_table(REWARDS)._repr_html_()
    assert "&lt;answer&gt;" in page and "<answer>" not in page and "[3164]" in page
    assert page == show_table(REWARDS)._repr_html_()  # pandas' random ids would change the notebook on every run
    assert len(max((line[0] for line in show_table(REWARDS).lines()), key=len)) < 130


def test_rows_that_were_let_through_once_say_what_they_got():
    once = {row.why: row.once for table in TABLES for row in table.rows if row.attack and row.once}
    assert len(once) >= 15 and once["an underscore as an answer"] == "1.0"


def test_the_tables_import_without_torch_and_without_pandas():
    program = ("import problama_utils.rewards.truth_view, sys; "
               "assert not {'torch', 'pandas', 'transformers'} & set(sys.modules)")
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_examples_in_the_docstrings_run():
    assert [doctest.testmod(module).failed for module in (truth_tables, truth_view)] == [0, 0]
