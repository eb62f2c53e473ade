"""Truth tables of the judge: completions, the expected reading or reward, and why. Tests and notebook 03 use them.

    READING         what is read strictly and leniently, and the verdict on a riddle whose answer is "bee"
    LETTER_ANSWERS  which one of A, B, C, D an answer names
    LEAD_INS        the verdict on an answer to a riddle about a clock: what may come before the word
    REWARDS         what a completion to the first riddle earns: correct answer, short response, soft format, total
    CHOICES         the same for a question with options A and B, of which B is right

`rewards.show_table` shows one in a notebook. Rows marked as attacks were written before the defence; `once` holds the
result of those that got through. Some still earn something, as their rows state: a wrong answer in good form earns 1.0
by design, and no trick may earn more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from problama_utils.rewards.slides import SLIDE_REWARDS, Completion, total_reward
from problama_utils.tasks.answers import grade, lenient_answer, read_letter, strict_answer
from problama_utils.tasks.piqa import PIQA
from problama_utils.tasks.riddles import RIDDLES

RIDDLE = {"answer": "bee", "aliases": ("honeybee", "bees")}  # the plural counts because the aliases name it
CHOICE = {"answer": "B", "aliases": (), "labels": ("A", "B")}
UNSEEN, FILLER = "\u200b", "\u3164"  # zero-width space; a "letter" of which nothing is drawn
RIGHT = "<answer>bee</answer>"


@dataclass(frozen=True)
class TableRow:
    """One completion with what must come of it, in the order of the table's columns."""

    why: str
    completion: Completion
    expected: tuple
    attack: bool = False
    once: str = ""  # what came of it before there was a defence, where that was different


@dataclass(frozen=True)
class Table:
    """Rows, the names of the columns, and the judge that fills them in from a completion."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    judge: Callable[[Any], Sequence[Any]]


@dataclass(frozen=True)
class Outcome:
    """A row and what the judge made of it, a cell per column."""

    row: TableRow
    got: tuple

    @property
    def ok(self) -> bool:
        return all(same(*cells) for cells in zip(self.got, self.row.expected, strict=True))


def read_and_grade(completion: str) -> tuple[str | None, str | None, str]:
    """Return the strict reading, the lenient reading, and the verdict on the strict one, for the riddle above."""
    strict = strict_answer(completion)
    return strict, lenient_answer(completion), grade(strict, [RIDDLE["answer"], *RIDDLE["aliases"]]).value


def pay(completion: Completion, problem: dict[str, Any]) -> tuple[float | None, ...]:
    """Return what one completion to a problem earns: correct, short, format and total."""
    batch = {"completions": [completion], **{name: [value] for name, value in problem.items()}}
    return (*(function(**batch)[0] for function in SLIDE_REWARDS), total_reward(**batch)[0])


def run_table(table: Table) -> list[Outcome]:
    """Run every row of a table through its judge.

    >>> all(outcome.ok for table in TABLES for outcome in run_table(table))
    True
    """
    return [Outcome(row, tuple(table.judge(row.completion))) for row in table.rows]


def same(got: object, expected: object) -> bool:
    """Say whether a cell agrees: numbers to the ninth digit, everything else in kind and value."""
    if isinstance(got, float) and isinstance(expected, float):
        return abs(got - expected) < 1e-9
    return type(got) is type(expected) and got == expected


def _attack(why: str, completion: Completion, expected: tuple, once: str = "") -> TableRow:
    return TableRow(why, completion, expected, attack=True, once=once)


_READING = (
    TableRow("as asked", RIGHT, ("bee", "bee", "right")),
    TableRow("several lines: the pattern needs DOTALL", "So:\n<answer>\nbee\n</answer>\n", ("bee", "bee", "right")),
    TableRow("capital tags", "<ANSWER>bee</Answer>", ("bee", "bee", "right")),
    TableRow("text around the pair", "I think <answer>a bee</answer>, yes.", ("a bee", "a bee", "right")),
    TableRow("article, capital, full stop", "<answer>A Bee.</answer>", ("A Bee.", "A Bee.", "right")),
    TableRow("typographic quotes", "<answer>“bee”</answer>", ("“bee”", "“bee”", "right")),
    TableRow("a typographic apostrophe", "<answer>It’s a bee</answer>", ("It’s a bee", "It’s a bee", "right")),
    TableRow("marked as bold", "<answer>**bee**</answer>", ("**bee**", "**bee**", "right")),
    TableRow("full width, as Japanese keyboards write it", "<answer>ＢＥＥ</answer>", ("ＢＥＥ", "ＢＥＥ", "right")),
    TableRow("an alias", "<answer>honeybee</answer>", ("honeybee", "honeybee", "right")),
    TableRow("a plural that the aliases name", "<answer>the bees</answer>", ("the bees", "the bees", "right")),
    TableRow("a plural that they do not name", "<answer>honeybees</answer>", ("honeybees", "honeybees", "wrong")),
    TableRow("an invisible character in the word", f"<answer>b{UNSEEN}ee</answer>",
        (f"b{UNSEEN}ee", f"b{UNSEEN}ee", "right"), once="wrong"),
    TableRow("inside a code fence", f"```\n{RIGHT}\n```", ("bee", "bee", "right")),
    TableRow("inside an attribute: the rule knows no HTML", f'<p title="{RIGHT}">', ("bee", "bee", "right")),
    TableRow("wrong", "<answer>wasp</answer>", ("wasp", "wasp", "wrong")),
    TableRow("another script", "<answer>пчела</answer>", ("пчела", "пчела", "wrong")),
    TableRow("a script without spaces", "<answer>蜜蜂</answer>", ("蜜蜂", "蜜蜂", "wrong")),
    TableRow("a script whose vowels are marks", "<answer>मधुमक्खी</answer>", ("मधुमक्खी", "मधुमक्खी", "wrong")),
    TableRow("right to left", "<answer>نحلة</answer>", ("نحلة", "نحلة", "wrong")),
    TableRow("no tags", "bee", (None, "bee", "unjudged")),
    TableRow("announced in prose", "The answer is a bee.", (None, "a bee", "unjudged")),
    TableRow("announced, then prose", "Answer: bee\nIt stings.", (None, "bee", "unjudged")),
    TableRow("announced, on the next line", "The answer is:\na bee", (None, "a bee", "unjudged"),
             once=": read leniently"),
    TableRow("announced in bold", "**Answer:**\n\na bee\nIt stings.", (None, "a bee", "unjudged"),
             once="** read leniently"),
    TableRow("announced once more and cut off", "The answer is a bee.\nThe answer", (None, "a bee", "unjudged")),
    TableRow("a letter on its own line", "B\nBecause iron rusts", (None, "B", "unjudged"), once="not read leniently"),
    TableRow("prose without an announcement", "It stings.\nIt flies.", (None, None, "unjudged")),
    TableRow("never closed", "<answer>bee", (None, "bee", "unjudged")),
    TableRow("truncated in the closing tag", "<answer>bee</answ", (None, "bee</answ", "unjudged")),
    TableRow("never opened", "bee</answer>", (None, None, "unjudged")),
    TableRow("the wrong way round", "</answer>bee<answer>", (None, None, "unjudged")),
    TableRow("a tag with an attribute", '<answer id="1">bee</answer>', (None, "bee", "unjudged"),
             once="not read leniently"),
    TableRow("no answer between the tags", "<answer></answer>", (None, None, "unjudged")),
    TableRow("only white space between", "<answer> \n\t</answer>", (None, None, "unjudged")),
    TableRow("nothing at all", "", (None, None, "unjudged")),
    TableRow("10,000 characters before the answer", "x" * 10_000 + RIGHT, (None, None, "unjudged")),
    TableRow("only punctuation", "<answer>!?</answer>", ("!?", "!?", "unjudged")),
    _attack("list of guesses", "<answer>wasp, bee, ant</answer>", ("wasp, bee, ant", "wasp, bee, ant", "wrong")),
    _attack("hedged", "<answer>not a bee</answer>", ("not a bee", "not a bee", "wrong")),
    _attack("the tags doubled", RIGHT + RIGHT, (None, None, "unjudged")),
    _attack("one pair per guess", "<answer>wasp</answer><answer>bee</answer>", (None, None, "unjudged")),
    _attack("nested", f"<answer>{RIGHT}</answer>", (None, None, "unjudged")),
    _attack("second pair behind 2,000 characters", RIGHT + " x" * 1000 + "<answer>wasp</answer>",
            (None, None, "unjudged"), once="right"),
    _attack("second pair spelled loosely", f"<answer >wasp</answer >{RIGHT}", (None, None, "unjudged"), once="right"),
    _attack("second pair with an invisible letter", f"<ans{UNSEEN}wer>wasp</ans{UNSEEN}wer>{RIGHT}",
            (None, None, "unjudged"), once="right"),
    _attack("second pair in full width", f"＜answer＞wasp＜/answer＞{RIGHT}", (None, None, "unjudged"), once="right"),
    _attack("letters of another alphabet that look alike", "<answer>bее</answer>", ("bее", "bее", "wrong")),
    _attack("a letter of which nothing is drawn", f"<answer>{FILLER}</answer>", (None, None, "unjudged"), once="wrong"),
    _attack("underscores", "<answer>___</answer>", ("___", "___", "unjudged"), once="wrong"),
)

_LETTERS = tuple(TableRow(why, text, (letter,), once=once) for why, text, letter, once in (
    ("as asked", "B", "B", ""), ("small", "b", "B", ""), ("in brackets", "(b)", "B", ""), ("full stop", "B.", "B", ""),
    ("with its text", "B: the magnet", "B", ""), ("named as an option", "Option B", "B", ""),
    ("named as a choice", "choice c", "C", ""), ("named as a letter", "the letter d", "D", ""),
    ("in prose", "I'd say it is B because it attracts iron", "B", ""), ("full width", "Ｂ", "B", ""),
    ("denied elsewhere", "B: not a magnet", "B", ""), ("A alone", "A", "A", ""), ("A, small", "a", "A", ""),
    ("A before a full stop", "The answer is A.", "A", ""), ("A with a mark, as B", "A!", "A", "not read"),
    ("A in bold, as B", "**A**", "A", "not read"), ("A before a dash, as B", "A - shake it", "A", "not read"),
    ("A on its own line", "A\nIt attracts.", "A", "not read"),
    ("the article is no choice", "A magnet", None, ""), ("a letter not on offer", "E", None, ""),
    ("no letter", "the magnet", None, ""), ("empty", "", None, ""),
    ("Cyrillic letter that looks alike", "В", "B", "not read"),
    ("10,000 characters", "word " * 2000, None, ""),
    ("A with a verb, as B", "A is correct", "A", "not read"),
    ("A in prose", "I think A is right", "A", "not read"),
    ("B before a noun: read like A", "B magnet", None, "B"), ("small, with a verb", "b is right", "B", "not read"),
    ("small capital", "ʙ", "B", "not read"), ("squared", "🅱", "B", "not read"),
    ("a vitamin", "vitamin C", None, "C"), ("several vitamins", "vitamins A, B and C", None, ""),
    ("a virus", "hepatitis B", None, "B"), ("a species", "E. coli", None, ""), ("a key", "C major", None, "C"),
    ("a shirt", "T-shirt", None, ""), ("hours", "9 A.M.", None, "A"), ("places", "from point A to point B", None, "B"),
    ("an option with a vitamin in it", "D: vitamin C", "D", "not read"), ("temperature", "40 °C", None, "C"),
)) + tuple(_attack(why, text, (None,), once) for why, text, once in (
    ("either", "A or B", ""), ("the bank repeated", "A, B, C, D", ""), ("the bank in brackets", "A) B) C) D)", ""),
    ("letter soup", "A B", "B"), ("letter soup, twice", "A A B", "B"), ("glued", "AB", ""), ("joined", "A & B", "B"),
    ("joined by a plus", "A+B", "B"), ("joined by a bar", "A|B", "B"), ("hedged", "B or maybe A?", "B"),
    ("not A", "not A", "A"), ("not B", "not B", "B"), ("denied, short form", "It isn't B", "B"),
    ("denied, after", "B is wrong", "B"), ("neither", "neither A nor B", "B"), ("all but one", "anything but B", "B"),
    ("either, the other small", "B or a", "B"), ("parted by bars", "B | c | d | a", "B"),
    ("with numbers", "A1 B C2 D3", "B"), ("either, one of them Cyrillic", "B or А", "B"),
    ("either, one of them a small capital", "B ᴀ", "B"), ("either, one of them with an accent", "B á", "B"),
    ("glued by or", "B BorA", "B"), ("glued after one", "B ACD", "B"), ("on two lines", "B\nA", ""),
))

# Whoever speaks of the answer, and whether of one thing or several, is no part of it. Doubt and denial are.
_LEAD_INS = tuple(TableRow(why, text, (verdict,), once=once) for why, text, verdict, once in (
    ("nothing before it", "clock", "right", ""), ("article", "A clock.", "right", ""),
    ("it", "It is a clock", "right", ""), ("you", "You are a clock", "right", "wrong"),
    ("you, short", "You're a clock!", "right", "wrong"), ("I", "I am a clock", "right", ""),
    ("they", "They are clocks", "right", "wrong"), ("we, short", "we're clocks", "right", "wrong"),
    ("he", "he's a clock", "right", "wrong"), ("she", "She is a clock", "right", "wrong"),
    ("that", "That is a clock", "right", "wrong"), ("this must be", "This must be a clock", "right", "wrong"),
    ("these", "These are clocks", "right", "wrong"), ("those", "Those were clocks.", "right", "wrong"),
    ("would be", "I would be a clock", "right", "wrong"), ("would, short", "It'd be a clock", "right", "wrong"),
    ("has to be", "It has to be a clock", "right", "wrong"), ("certainty", "It is surely a clock", "right", "wrong"),
    ("the question first", "What am I? A clock.", "right", "wrong"),
    ("I think", "I think it's a clock", "right", "wrong"),
    ("my answer", "My answer is: a clock", "right", "wrong"), ("in quotes", "“It’s a clock”", "right", "wrong"),
    ("two of them", "They're both clocks", "right", "wrong"),
    ("nothing else", "It can only be a clock", "right", "wrong"),
    ("no apostrophe", "youre a clock", "right", "wrong"), ("whose", "your clock", "right", ""),
    ("denied", "You are not a clock", "wrong", ""), ("denied, short", "It isn't a clock", "wrong", ""),
    ("likened", "It is like a clock", "wrong", ""), ("doubt is a guess", "Maybe a clock", "wrong", ""),
    ("could be anything", "It could be a clock", "wrong", ""), ("asked back", "Is it a clock?", "wrong", ""),
    ("two answers", "It is a clock or a watch", "wrong", ""), ("something of it", "It is a clock tower", "wrong", ""),
    ("somebody else", "My sister has a clock", "wrong", ""), ("only the lead-in", "It is a", "wrong", ""),
    ("another thing", "You are a watch", "wrong", ""), ("two at once", "You are a clock. It is a clock.", "wrong", ""),
))


def _earns(why: str, completion: Completion, correct: float, short: float, form: float, once: str = "") -> TableRow:
    """A row of rewards with their total; a reason that starts with "attack: " marks one."""
    attack = why.startswith("attack: ")
    paid = (correct, short, form, correct + short + form)
    return TableRow(why.removeprefix("attack: "), completion, paid, attack, once)


_REWARDS = (
    _earns("as asked", RIGHT, 2.0, 0.5, 0.5),
    _earns("an alias, in a sentence", "<answer>A honeybee.</answer>", 2.0, 0.5, 0.5),
    _earns("several lines", "Think.\n<answer>\nbee\n</answer>", 2.0, 0.5, 0.5),
    _earns("capital tags", "<ANSWER>BEE</ANSWER>", 2.0, 0.5, 0.5),
    _earns("inside a code fence", f"```\n{RIGHT}\n```", 2.0, 0.5, 0.5),
    _earns("20 words: half way from 10 to 30", RIGHT + " bee" * 19, 2.0, 0.25, 0.5),
    _earns("wrong: form and brevity are paid, and no more", "<answer>wasp</answer>", 0.0, 0.5, 0.5),
    _earns("another script", "<answer>蜜蜂</answer>", 0.0, 0.5, 0.5),
    _earns("right, without tags", "It is a bee", 0.0, 0.5, 0.0),
    _earns("never closed", "<answer>bee", 0.0, 0.5, 0.0),
    _earns("truncated in the closing tag", "<answer>bee</ans", 0.0, 0.5, 0.0),
    _earns("a tag with an attribute", '<answer id="1">bee</answer>', 0.0, 0.5, 0.0, once="0"),
    _earns("never opened", "bee</answer>", 0.0, 0.0, 0.0),
    _earns("nothing between the tags", "<answer></answer>", 0.0, 0.0, 0.0),
    _earns("empty", "", 0.0, 0.0, 0.0),
    _earns("white space", " \n\t", 0.0, 0.0, 0.0),
    _earns("prose of two lines, no answer", "It flies.\nIt stings.", 0.0, 0.0, 0.0),
    _earns("10,000 characters of words", "word " * 2000, 0.0, 0.0, 0.0),
    _earns("chat turns", [{"role": "assistant", "content": RIGHT}], 2.0, 0.5, 0.5),
    _earns("chat turn without content", [{"role": "assistant", "content": None}], 0.0, 0.0, 0.0),
    _earns("chat turn of a tool call", [{"role": "assistant", "tool_calls": []}], 0.0, 0.0, 0.0, once="KeyError"),
    _earns("content in parts", [{"role": "assistant", "content": [{"type": "text", "text": RIGHT}]}], 2.0, 0.5, 0.5,
           once="TypeError"),
    _earns("attack: list of guesses", "<answer>bee, wasp, ant</answer>", 0.0, 0.5, 0.5),
    _earns("attack: letter soup", "<answer>A B C D</answer>", 0.0, 0.5, 0.5),
    _earns("attack: one pair per guess", "<answer>wasp</answer><answer>bee</answer>", 0.0, 0.0, 0.0),
    _earns("attack: nested", f"<answer>{RIGHT}</answer>", 0.0, 0.0, 0.0),
    _earns("attack: an invisible letter in the tags", f"<ans{UNSEEN}wer>bee</ans{UNSEEN}wer>", 0.0, 0.5, 0.0, once="0"),
    _earns("attack: a second pair spelled loosely", f"<answer >wasp</answer >{RIGHT}", 0.0, 0.0, 0.0, once="3.0"),
    _earns("attack: a second pair far behind", RIGHT + " x" * 1000 + "<answer>wasp</answer>", 0.0, 0.0, 0.0,
           once="2.5"),
    _earns("attack: a letter of which nothing is drawn", f"<answer>{FILLER}</answer>", 0.0, 0.0, 0.0, once="1.0"),
    _earns("attack: punctuation as an answer", "<answer>...</answer>", 0.0, 0.0, 0.0),
    _earns("attack: an underscore as an answer", "<answer>_</answer>", 0.0, 0.0, 0.0, once="1.0"),
    _earns("attack: an underscore without tags", "_", 0.0, 0.0, 0.0, once="0.5"),
    _earns("attack: answer, then 500 words", RIGHT + " word" * 500, 2.0, 0.0, 0.5),
    _earns("attack: 500 words glued by hyphens", RIGHT + "-word" * 500, 2.0, 0.0, 0.5, once="3.0"),
    _earns("attack: 10,000 letters without a space", RIGHT + "x" * 10_000, 2.0, 0.0, 0.5, once="3.0"),
    _earns("attack: words parted by invisible spaces", RIGHT + f"word{UNSEEN}" * 500, 2.0, 0.0, 0.5, once="3.0"),
    _earns("attack: letters of another alphabet that look alike", "<answer>bее</answer>", 0.0, 0.5, 0.5),
    _earns("attack: hedged", "<answer>not a bee</answer>", 0.0, 0.5, 0.5),
    _earns("attack: a tag out of two turns",
           [{"role": "assistant", "content": part} for part in ("<ans", "wer>bee</answer>")],
           0.0, 0.0, 0.0, once="3.0"),
    _earns("attack: the answer in a tool's turn", [{"role": "tool", "content": RIGHT}], 0.0, 0.0, 0.0, once="3.0"),
    # The next two still earn what any wrong answer in good form earns: no rule that reads one completion can tell.
    _earns("attack: the prompt's own example", "<answer>word</answer>", 0.0, 0.5, 0.5),
    _earns("attack: the whole prompt, example and all", RIDDLES.system, 0.0, 0.425, 0.5),
    _earns("attack: hidden from a reader by a comment", f"<!-- {RIGHT} -->", 2.0, 0.5, 0.5),
)
_CHOICES = (
    _earns("as asked", "<answer>B</answer>", 2.0, 0.5, 0.5),
    _earns("named as an option", "<answer>option b</answer>", 2.0, 0.5, 0.5),
    _earns("wrong", "<answer>A</answer>", 0.0, 0.5, 0.5),
    _earns("no tags", "B", 0.0, 0.5, 0.0),
    _earns("attack: letter soup", "<answer>A B</answer>", 0.0, 0.5, 0.5, once="3.0"),
    _earns("attack: glued", "<answer>AB</answer>", 0.0, 0.5, 0.5),
    _earns("attack: either", "<answer>A or B</answer>", 0.0, 0.5, 0.5),
    _earns("attack: denied", "<answer>not B</answer>", 0.0, 0.5, 0.5, once="3.0"),
    # Right half the time, as for every policy that always says A: chance is the floor to compare with, not zero.
    _earns("attack: the prompt's own example", PIQA.system.split(": ")[-1], 0.0, 0.5, 0.5),
)

READING = Table("reading", ("strict", "lenient", "verdict"), _READING, read_and_grade)
LETTER_ANSWERS = Table("letters", ("letter",), _LETTERS, lambda text: (read_letter(text, ("A", "B", "C", "D")),))
LEAD_INS = Table("lead-ins", ("verdict",), _LEAD_INS, lambda text: (grade(text, ["clock", "clocks"]).value,))
_PAID = ("correct", "short", "format", "total")
REWARDS = Table("rewards", _PAID, _REWARDS, lambda completion: pay(completion, RIDDLE))
CHOICES = Table("choices", _PAID, _CHOICES, lambda completion: pay(completion, CHOICE))
TABLES = (READING, LETTER_ANSWERS, LEAD_INS, REWARDS, CHOICES)
