"""Reading and grading: truth tables with the reason per row, and properties on any text."""

import doctest
import random
import time
from functools import partial
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from problama_utils.rewards import slides as rewards
from problama_utils.rewards.truth_tables import LEAD_INS, LETTER_ANSWERS, READING
from problama_utils.tasks import answers
from problama_utils.tasks import reading as letters
from problama_utils.tasks.answers import (
    LONGEST,
    Verdict,
    grade,
    judge,
    lenient_answer,
    normalise,
    read_letter,
    strict_answer,
    visible,
)
from problama_utils.tasks.reading import folded

READ = [(row.completion, *row.expected) for row in READING.rows]
WHY = [row.why for row in READING.rows]


def test_the_tables_are_long_enough_and_every_row_has_a_reason_of_its_own():
    assert min(len(READING.rows), len(LETTER_ANSWERS.rows)) >= 25 and len(set(WHY)) == len(WHY)
    assert sum(row.attack for row in READING.rows) >= 10 and sum(row.attack for row in LETTER_ANSWERS.rows) >= 10


@pytest.mark.parametrize(("completion", "strict", "lenient", "verdict"), READ, ids=WHY)
def test_what_is_read_strictly_and_leniently_and_the_verdict(completion, strict, lenient, verdict):
    assert (strict_answer(completion), lenient_answer(completion)) == (strict, lenient)
    assert grade(strict_answer(completion), ["bee", "honeybee", "bees"]) is Verdict(verdict)


def test_the_last_announcement_counts_and_two_pairs_stay_unread_even_leniently():
    assert lenient_answer("The answer is hard to see. The answer is a bee.") == "a bee"
    assert lenient_answer("<answer>wasp</answer><answer>bee</answer>") is None


def unlike(n):
    """n characters of every script, no two of them neighbours in Unicode."""
    return "".join(map(chr, random.Random(0).choices(range(0x20, 0xD800), k=n)))


HOSTILE = {  # what is repeated up to a length, or made in that length
    "letters": "x", "spaces": " ", "line breaks": "\n", "marks": "\u0301", "marks out of order": "\u0301\u0316",
    "a mark that is two": "\u0f73", "half-width voicing marks": "\uff9e", "one character that is 18": "\ufdfa",
    "full width": "Ａ", "mathematical": "𝐁 ", "tags": "<answer>", "closing tags": "</answer>", "invisible": "\u200b",
    "pairs": "<answer>a</answer>", "open attributes": "<answer ", "open slashes": "</ ", "brackets": "<", "A": "A ",
    "lines": "B\n", "not": "not ", "denied letters": "not the B ", "announcements": "answer: ",
    "announced": "answer is B. ",
    "vitamins": "vitamin A and ", "hyphens": "A-", "apostrophes": "a'", "numbers": "A1 ", "dots": "A.",
    "jamo": "\u1100\u1161",
    "lead-ins": "it is a ", "articles": "the ", "the question": "what am i ", "half an emoji": "\ud83d",
    "accents": "á ",
    "growing in lower case": "\u0345\u0390İ", "any character": unlike,
}  # fmt: skip
TEXTS = ["a magnet", "iron", "from A to B", "vitamin C"]
READERS = {
    "strict_answer": strict_answer, "lenient_answer": lenient_answer, "lenient, texts known":
    partial(lenient_answer, choices=TEXTS), "read_letter": partial(read_letter, labels="ABCD"),
    "read_letter, texts known": partial(read_letter, labels="ABCD", choices=TEXTS), "normalise": normalise,
    "visible": visible, "folded": folded, "grade": partial(grade, accepted=["bee"]),
    "an alias": lambda text: grade("bee", ["bee", text]),
    "judge": partial(judge, right="bee"), "judge, a letter": partial(judge, right="B", labels="ABCD", choices=TEXTS),
    "an option's text": lambda text: read_letter("B or so", "AB", ["iron", text]), "word_count": rewards.word_count,
    **{pay.__name__: lambda text, pay=pay: pay([text], answer=["B"], labels=["ABCD"], choices=[TEXTS])
       for pay in (*rewards.SLIDE_REWARDS, rewards.total_reward)},
}  # fmt: skip


@pytest.mark.parametrize("size", [1_990, LONGEST - 20, 100_000, 1_000_000])
@pytest.mark.parametrize("shape", HOSTILE)
def test_no_text_keeps_a_reader_or_a_reward_busy_for_50_ms(shape, size):
    made = HOSTILE[shape]
    body = made(size) if callable(made) else (made * (size // len(made) + 1))[:size]
    for text in (body, f"<answer>a{body}", f"<answer>a{body}</answer>"[-size - 9:]):
        for name, read in READERS.items():
            best = 9.0
            for _ in range(3):  # the machine may be busy with something else
                started = time.process_time()
                read(text)
                best = min(best, time.process_time() - started)
                if best < 0.05:
                    break
            assert best < 0.05, f"{name} took {1000 * best:.0f} ms"


def test_a_text_of_any_length_with_too_many_marks_is_still_read():
    assert read_letter("B" + "\u0301" * 1_000, "ABCD") == "B" and len(visible("a" + "\u0316" * 1_000)) == 31
    assert strict_answer("<answer>bee</answer>" + "\u0301" * 5_000) == "bee"
    assert grade("bee" + " " * 5_000 + "wasp", ["bee"]) is Verdict.UNJUDGED, "nothing hides behind the limit"
    assert strict_answer("<answer>bee</answer>" + " " * 20_000 + "<answer>wasp</answer>") is None


@pytest.mark.parametrize(
    ("given", "accepted", "verdict"),
    [
        ("A Bee.", ["bee"], Verdict.RIGHT), ("the honey-bee", ["honey bee"], Verdict.RIGHT),
        ("It's a bee!", ["bee"], Verdict.RIGHT), ("bees", ["bee", "bees"], Verdict.RIGHT),
        ("bees", ["bee"], Verdict.WRONG), ("bee wasp fly", ["bee"], Verdict.WRONG), ("be", ["bee"], Verdict.WRONG),
        (None, ["bee"], Verdict.UNJUDGED), ("...", ["bee"], Verdict.UNJUDGED), ("ＢＥＥ", ["bee"], Verdict.RIGHT),
    ],
)
def test_grading_normalises_both_sides_and_accepts_no_lists(given, accepted, verdict):
    assert grade(given, accepted) is verdict


@pytest.mark.parametrize("row", LETTER_ANSWERS.rows, ids=lambda row: row.why)
def test_exactly_one_letter_is_read_or_none(row):
    assert (read_letter(row.completion, ["A", "B", "C", "D"]),) == row.expected


@pytest.mark.parametrize("row", LEAD_INS.rows, ids=lambda row: row.why)
def test_what_may_stand_before_the_answer_of_a_riddle(row):
    assert (grade(row.completion, ["clock", "clocks"]).value,) == row.expected


NAMING = """
{} | {}. | {}! | {}? | {}: the magnet | {}) the magnet | ({}) the magnet | {}. the magnet | {} - the magnet | {} – iron
**{}** | '{}' | "{}" | “{}” | [{}] | ({}) | <{}> | `{}` | $\\boxed{{{}}}$ | # {} | - {} | => {} | {} the magnet
{} is correct | {} is the best answer | {} was right | {} would be my pick | {} seems right | {} looks good | {} wins
{} works best | {} fits | {} makes sense | {} has to be it | {} must be right | {} can be right | {} will work | {} does
{} attracts iron | {} because it attracts iron | {} since iron rusts | {} as iron rusts | {}, because | {} it is
{} then
{} of course | {} for sure | {} obviously | {} definitely. | {}, I guess | {} I think | {} in my opinion
{} and only it
I think {} is right because it melts | I believe {} is the one | I would choose {} | I choose {} | I pick {} so it holds
I'd go with {} | I'm going with {} here | I'd vote for {} | I settled on {} | I'd say {} | I am sure {} is right
Option {} would be my pick | option {} | choice {} is better | letter {} | the letter {} | the {} option | Only {} works
Definitely {} | Clearly {} | Yes, {} | So {} | Hmm, {} | It's {} | That's {} | It is {} | It must be {}
It has to be {}
The answer is {} | My answer is {}. | Answer: {} | Answer - {} | The best is {} | The right one is {} | My pick: {}
= {}
The correct option is {} because iron rusts. | My final choice is {}. | If I had to choose, {} | Of these, {} is best
Iron is a metal, so {} | A magnet attracts iron. {} | B. {} | It looks like {} | in my opinion {} is right | correct: {}
"""
UNNAMING = """
{} magnet attracts iron | {} magnet | I like {} magnet | {} big magnet is best | vitamin {} | hepatitis {} | plan {}
{}. coli
{} major | {} batteries | type {} | grade {} | size {} | {}-shirt | {}-ray | point {} | {}.M. | {}'s turn | 40 °{}
not {}
{} is wrong | {} isn't right | anything but {} | molecule {} | the key of {} | {}# | {}2 | an {} grade | instead of {}
"""


def templates(table):
    return [template.strip() for line in table.strip().split("\n") for template in line.split(" | ")]


@pytest.mark.parametrize("labels", ["ABCD", "ABCDEFGH"])
@pytest.mark.parametrize("case", [str.upper, str.lower])
@pytest.mark.parametrize("template", [t for t in templates(NAMING) if t != "B. {}"])
def test_no_letter_is_easier_to_read_than_another(template, case, labels):
    # Once "B is correct" was read and "A is correct" was not: a policy that prefers A looked worse than it is.
    texts = [template.format(case(letter)) for letter in labels]
    assert [read_letter(text, labels) for text in texts] == list(labels)
    assert [read_letter(lenient_answer(text), labels) for text in texts] == list(labels)
    lines = [f"{text}\nBecause iron rusts" for text in texts]
    assert [read_letter(lenient_answer(line), labels) for line in lines] == list(labels)


@pytest.mark.parametrize("case", [str.upper, str.lower])
@pytest.mark.parametrize("template", templates(UNNAMING))
def test_what_is_no_choice_of_one_letter_is_none_of_any(template, case):
    for letter in "ABCDEFGH":
        assert read_letter(template.format(case(letter)), "ABCDEFGH") is None


@pytest.mark.parametrize("template", ["{} or {}", "{} and {}", "{} is right, or {}", "{}, {}", "{}|{}",
    "{} is better than {}",
                                      "{}\n{}", "({}) ({})", "{}1 {}2", "{} not {}", "both {} and {}", "{} {}",
                                      "{}{} {}"])
@pytest.mark.parametrize("case", [str.upper, str.lower])
def test_two_letters_are_no_choice_whichever_they_are(template, case):
    for two in permutations("ABCD", 2):
        assert read_letter(template.format(*map(case, two), case(two[0])), "ABCD") is None


ALIKE = ["А В С ᗪ Е", "Α Β Ϲ Ꭰ Ε", "Ａ Ｂ Ｃ Ｄ Ｅ", "𝐀 𝐁 𝐂 𝐃 𝐄", "Ⓐ Ⓑ Ⓒ Ⓓ Ⓔ", "ᴀ ʙ ᴄ ᴅ ᴇ", "🅐 🅑 🅒 🅓 🅔", "🅰 🅱 🅲 🅳 🅴",
         "🇦 🇧 🇨 🇩 🇪", "ᴬ ᴮ ꓚ ᴰ ᴱ", "Ꭺ Ᏼ Ꮯ Ꭰ Ꭼ", "ꓮ ꓐ ꓚ ꓓ ꓰ", "𝔸 𝔹 ℂ 𝔻 𝔼", "Á B\u0301 Ć Ď É", "⒜ ⒝ ⒞ ⒟ ⒠", "ᗅ ᗷ С ᗞ ℰ",
         "а Ь с ԁ е", "ａ ｂ ｃ ｄ ｅ", "ⓐ ⓑ ⓒ ⓓ ⓔ", "A\u200b \u2060B C\u00ad D\ufe0f E\u20dd", "𝒶 𝒷 𝒸 𝒹 ℯ"]


@pytest.mark.parametrize("row", ALIKE)
def test_letters_that_look_alike_are_one_letter_before_they_are_counted(row):
    alike = row.split()
    assert [read_letter(text, "ABCDE") for text in alike] == list("ABCDE")
    for place, text in enumerate(alike):
        other = "ABCDE"[place - 1]
        for joined in (f"{other} or {text}", f"{other} {text}", f"{text}, {other}", f"{other} | {text}",
        f"{other}\n{text}"):
            assert read_letter(joined, "ABCDE") is None, joined


SEVERAL = ["B or a", "B | c | d | a", "A1 B C2 D3", "B/A", "B\\A", "B_A", "B-A", "B~A", "B,a", "b,a", "B;A", "B:A",
    "B·A",
           "B→A", "B\tA", "B (or A)", "B [A]", "B & a", "B + a", "BorA", "B BorA", "B, possibly A", "B then A",
           "A to D",
           "A-D", "A..D", "A…D", "B and also a", "B2 A1 B", "1A 2B", "(1) A (2) B", "1. A 2. B", "a b c d", "B ABCD",
           "B abcd", "B, AB", "A.B.C.D", "B ᗅ", "B \u200bA", "A\u00adB", "either a or b", "first A then B", "B apple A",
           "A=1 B=2", "A%B", "[A][B]", "a) b)", "A? B?", "A or B but B", "it is B, or it is a", "B iron, A wood, C",
           "B A.C.D", "B aCd", "B or E", "B or H", "A iron, B wood, C glass"]


@pytest.mark.parametrize("text", SEVERAL)
def test_a_reader_who_sees_several_letters_reads_none_and_pays_none(text):
    assert [read_letter(text, labels) for labels in ("AB", "ABC", "ABCD")] == [None] * 3
    said = [f"<answer>{text}</answer>"]
    paid = [rewards.correct_answer_reward(said, answer=[right], labels=["ABCD"]) for right in "ABCD"]
    assert paid == [[0.0]] * 4


COMPOUNDS = ["vitamin C", "Vitamin B12", "vitamins A and D", "vitamins A, C and E", "hepatitis B", "Hepatitis C virus",
             "E. coli", "E.coli", "C. elegans", "C. difficile", "plan B", "Plan B is better", "T-shirt", "X-ray",
             "D-day",
             "B-flat", "C-section", "type A", "blood type B", "grade A", "C major", "B minor", "C sharp", "C#",
             "size C",
             "AAA batteries", "C batteries", "D cells", "from point A to point B", "from A to B", "10 A.M.", "9 a.m.",
             "500 B.C.", "A.D. 79", "40 °C", "25 ℃", "100 C", "group B", "Team A", "Figure B", "drive C", "influenza A",
             "H2O", "CO2", "G-force", "b vitamins", "B cells", "vitamin-C", "e-mail", "Gate C", "B's"]


@pytest.mark.parametrize("text", COMPOUNDS)
def test_the_letter_of_a_compound_is_no_choice_and_hides_none(text):
    assert read_letter(text, "ABCDEFGH") is None
    for dress in ("{}: {}", "{}) {}", "({}) {}", "{} - {}", "{}, {}", "Option {}: {}"):
        if text not in ("H2O", "CO2"):  # one digit and one letter is also how options are numbered: no matter here
            assert read_letter(dress.format("F", text), "ABCDEFGH") == "F", (dress, text)


@pytest.mark.parametrize(("text", "choices", "letter"), [
    ("molecule C", ["molecule C", "molecule D"], None), ("A: molecule C", ["molecule C", "molecule D"], "A"),
    ("C: from A to B", ["x", "y", "from A to B"], "C"), ("C: it goes from A", ["x", "y", "it goes from A to B"], "C"),
    ("B: DC motor", ["AC motor", "DC motor"], "B"), ("B: bulb A is brighter", ["equal", "bulb A is brighter"], "B"),
    ("bulb A is brighter", ["equal", "bulb A is brighter"], None), ("B: a 3D printer", ["iron", "a 3D printer"], "B"),
    ("A: both A and B", ["both A and B", "neither"], "A"), ("both A and B", ["both A and B", "neither"], None),
    ("B: C", ["D", "C", "iron"], "B"), ("D: a", ["x", "y", "z", "a planet"], "D"), ("A magnet", ["magnet", "x"], None),
    ("A magnet", ["x", "a magnet"], None), ("C or A", ["a magnet", "iron", "salt"], None),
    ("A is right", ["a magnet", "iron"], "A"), ("B: add A, then C", ["iron", "add A, then C"], "B"),
    ("pin F is high", ["pin E is high", "pin F is high"], None), ("B", ["A and B", "B and C", "C and A"], "B"),
])
def test_a_letter_of_an_options_text_is_no_choice(text, choices, letter):
    assert read_letter(text, "ABCD"[: len(choices)], choices) == letter
    assert judge(text, "D", labels="ABCD"[: len(choices)], choices=choices) is (
        Verdict.UNJUDGED if letter is None else Verdict.RIGHT if letter == "D" else Verdict.WRONG)


LINES = [  # completion, lenient answer, letter
    ("The answer is:\nB", "B", "B"), ("B\nBecause iron rusts", "B", "B"), ("The answer is:\na clock", "a clock", None),
    ("The answer is\n\nB: iron\nIt rusts.", "B: iron", "B"), ("**Answer:**\nB", "B", "B"),
    ("Answer:\n\n(b)", "(b)", "B"),
    ("Iron rusts.\nSo it is B.", "So it is B.", "B"), ("Let me think.\n\nB: iron\n", "B: iron", "B"),
    ("B: iron\n\nIron is a metal that rusts", "B: iron", "B"), ("B: iron\nThe answer is:", "B: iron", "B"),
    ("B: iron\n\nThe answer", "B: iron", "B"), ("B: iron\nThe answer is: iron", "B: iron", "B"),
    ("A: wood\nThe answer is B: iron", "B: iron", "B"), ("B: x\nB: y", "B: x", "B"), ("B:\n\nB:", "B:", "B"),
    ("The answer is B. The answer is", "B", "B"), ("The answer:\r\n\r\nB", "B", "B"),
    ("The solution is:\na map", "a map", None),
    ("A: wood\nB: iron", None, None), ("B\nor A", None, None), ("B\n\nA", None, None),
    ("It stings.\nIt flies.", None, None),
    ("The answer is:", None, None), ("The answer is:\n\n", None, None), ("Vitamin C\nis in fruit.", None, None),
    ("A magnet\nattracts iron.", None, None), ("The wrong answer is B", "The wrong answer is B", None),
    ("B: iron\nIron is the metal that rusts in a", "B: iron", "B"),
    ("The swamp is wet, and the desert is a",) * 2 + (None,),
    ("The answer is E. coli", "E. coli", None), ("The answer is 3.5 m. Yes.", "3.5 m", None),
]


@pytest.mark.parametrize(("completion", "lenient", "letter"), LINES)
def test_an_answer_on_a_line_of_its_own_is_read(completion, lenient, letter):
    assert (lenient_answer(completion), read_letter(lenient_answer(completion), "ABCD")) == (lenient, letter)


def test_answers_in_other_scripts_are_words_of_their_own():
    for word in ("пчела", "μέλισσα", "अ", "蜜蜂", "ᏩᏚᎵ", "с", "Ω"):
        assert grade(f"<{word}>", [word]) is Verdict.RIGHT and normalise(word) == word.casefold()
    assert grade("сом", ["com"]) is Verdict.WRONG, "a catfish"


@pytest.mark.parametrize("tag", ["аnswer", "аոѕԝеr", "ＡＮＳＷＥＲ", "ᴀɴꜱᴡᴇʀ", "𝐚𝐧𝐬𝐰𝐞𝐫", "ánswer", "an\u200bswer"])
def test_a_second_pair_of_tags_in_look_alikes_is_a_second_answer(tag):
    for opening, slash, closing in ("</>", "‹/›", "⟨⁄⟩", "＜／＞"):
        assert strict_answer(f"{opening}{tag}{closing}wasp{opening}{slash}{tag}{closing}<answer>bee</answer>") is None


@pytest.mark.parametrize("text", ["AB", "", "BC", "ABCD"])
def test_labels_given_as_one_string_are_still_single_letters(text):
    assert read_letter(text, "ABCD") is None


def test_a_letter_outside_the_labels_is_unjudged_not_wrong():
    assert judge("D", "A", labels=["A", "B"]) is Verdict.UNJUDGED
    assert judge("B", "A", labels=["A", "B"]) is Verdict.WRONG


ANYTHING = st.text(st.characters())  # lone surrogates too, as half an emoji at the token budget leaves them
TAGGISH = st.lists(st.sampled_from(["<answer>", "</answer>", "<answer >", "A", "B", "bee", " ", "\n", "\u200b", "not ",
                                    "\u3164", "answer is ", "<", "_"]), max_size=12).map("".join)


@given(ANYTHING | TAGGISH)
def test_no_text_makes_a_reader_raise(text):
    for read in (strict_answer, lenient_answer):
        answer = read(text)
        assert answer is None or visible(answer).strip()
        grade(answer, ["bee"])
        read_letter(answer, ["A", "B"])


@given(TAGGISH)
def test_what_is_read_strictly_has_one_pair_of_tags_that_a_reader_sees(text):
    if strict_answer(text) is not None:
        assert [visible(text).count(tag) for tag in ("<answer", "</answer")] == [1, 1]


def test_vowel_marks_and_invisible_characters():
    assert normalise("कि") != normalise("का") and normalise("cafe\u0301") == normalise("café")
    assert normalise("b\u200be\u00ade\ufeff") == "bee" and normalise("a the a bee") == "bee"


@given(ANYTHING.filter(lambda text: len(text) < 40) | TAGGISH)
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@given(
    st.sampled_from(["bee", "sea lion", "x"]),
    st.sampled_from(["", "a ", "The ", "an "]),
    st.sampled_from(["", ".", "!"]),
)
def test_dress_does_not_change_the_verdict(word, article, mark):
    assert grade(article + word.upper() + mark, [word]) is Verdict.RIGHT


def test_examples_in_the_docstrings_run():
    assert doctest.testmod(answers).failed == 0 and doctest.testmod(letters).failed == 0
