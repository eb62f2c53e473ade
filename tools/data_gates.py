"""Quality gates of the kit's own data; `python -m tools.check_data` prints them.

A gate is a figure with bounds. The figures guard against what makes a data set teach the wrong thing: near-duplicates,
answers that a split leaks, a letter or a length that gives the answer away, words that only right options use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from problama_utils.tasks.answers import normalise

Row = dict[str, Any]
# Words of an answer that may be in its riddle: they give nothing away.
FREE_WORDS = frozenset(
    ["a", "an", "and", "at", "by", "for", "from", "in", "it", "my", "of", "on", "or", "the", "to", "up", "with"])
COUNTS = {  # data set -> gate -> (least, most) rows; the sizes
    "riddles": {"rows": (800, 800), "train rows": (640, 640), "held-out rows": (160, 160), "level 1": (480, 800),
                "level 1, train": (384, 640), "level 3": (120, 800)},
    "physical": {"rows": (2400, 2400), "train rows": (2000, 2000), "held-out rows": (400, 400), "level 1": (960, 960),
                 "level 2": (960, 960), "level 3": (480, 480)},
    "science": {"rows": (400, 400), "level 1": (200, 200), "level 2": (200, 200)},
}


@dataclass(frozen=True)
class Gate:
    """One figure of one data set with its bounds (both included; a count, or a share in percent)."""

    data: str
    name: str
    figure: float
    low: float
    high: float

    @property
    def ok(self) -> bool:
        """Whether the figure lies within the bounds."""
        return self.low <= self.figure <= self.high

    @property
    def bound(self) -> str:
        """The bounds in words."""
        if self.low == self.high:
            return f"= {self.low:g}"
        if self.low == 0:
            return f"<= {self.high:g}"
        return f"{self.low:g} to {self.high:g}"


# --- figures -------------------------------------------------------------------------------------------------------


def options_of(row: Row) -> list[str]:
    """Return what a reader chooses from: the bank of a riddle, the solutions of a pair, the choices of a question."""
    return [row["sol1"], row["sol2"]] if "sol1" in row else list(row["choices"])


def right_of(row: Row) -> int:
    """Return the position of the right option, counted from 0."""
    if "label" in row:
        return row["label"]
    return row["labels"].index(row["answer"]) if "labels" in row else row["choices"].index(row["answer"])


def item_text(row: Row) -> str:
    """Return all that a reader sees of an item (of a riddle without its bank)."""
    if "riddle" in row:
        return row["riddle"]
    return " ".join([row.get("goal") or row["question"], *options_of(row)])


def nearest_pair(rows: Sequence[Row]) -> tuple[float, str, str]:
    """Return the highest token-set ratio (0 to 100) between two items, and their ids."""
    import numpy as np
    from rapidfuzz import fuzz, process, utils

    texts = [utils.default_process(item_text(row)) for row in rows]
    ratios = process.cdist(texts, texts, scorer=fuzz.token_set_ratio)
    np.fill_diagonal(ratios, 0)
    one, other = np.unravel_index(int(ratios.argmax()), ratios.shape)
    return float(ratios[one, other]), rows[one]["id"], rows[other]["id"]


def position_shares(rows: Sequence[Row]) -> dict[int, float]:
    """Return the percentage of items whose right option is at each position."""
    counts = Counter(right_of(row) for row in rows)
    return {place: 100 * counts[place] / len(rows) for place in range(max(len(options_of(row)) for row in rows))}


def longest_option_accuracy(rows: Sequence[Row]) -> float:
    """Return how often (percent) the option with most characters is right; options of equal length share the point.

    >>> longest_option_accuracy([{"sol1": "long one", "sol2": "short", "label": 0}])
    100.0
    """
    points = 0.0
    for row in rows:
        lengths = [len(option.strip()) for option in options_of(row)]
        longest = [place for place, length in enumerate(lengths) if length == max(lengths)]
        points += (right_of(row) in longest) / len(longest)
    return 100 * points / len(rows)


def bag_of_words_accuracy(rows: Sequence[Row], *, folds: int = 5, seeds: Iterable[int] = (0, 1, 2)) -> float:
    """Return how often (percent) a logistic regression on the options' words, blind to the question, is right.

    It learns on four fifths of the items which words right options use and then takes, of each unseen item, the
    option it finds likeliest; ties share the point. Folds keep an item's options together; mean over `seeds`.
    """
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import KFold

    options, right = [options_of(row) for row in rows], [right_of(row) for row in rows]
    points = []
    for seed in seeds:
        for train, test in KFold(folds, shuffle=True, random_state=seed).split(rows):
            vectorizer = CountVectorizer(binary=True, token_pattern=r"(?u)\b\w+\b")
            words = vectorizer.fit_transform([option for item in train for option in options[item]])
            labels = [place == right[item] for item in train for place in range(len(options[item]))]
            model = LogisticRegression(max_iter=1000).fit(words, labels)
            unseen = vectorizer.transform([option for item in test for option in options[item]])
            ends = np.cumsum([len(options[item]) for item in test])[:-1]
            for item, scores in zip(test, np.split(model.decision_function(unseen).round(9), ends), strict=True):
                best = np.flatnonzero(scores == scores.max())
                points.append((right[item] in best) / len(best))
    return 100 * float(np.mean(points))


def _stems(text: str) -> set[str]:
    """Return the words of a text without plural endings, so that "leaves" and "leaf" stay apart but "keys" is "key"."""
    return {word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
            for word in normalise(text).split()} - FREE_WORDS


def answers_in_riddle(rows: Sequence[Row]) -> list[str]:
    """Return the ids of riddles that contain a word of their own answer, or the whole of an alias."""
    return [row["id"] for row in rows if _stems(row["answer"]) & _stems(row["riddle"]) or any(
        f" {normalise(alias)} " in f" {normalise(row['riddle'])} " for alias in row["aliases"])]


def repeated_aliases(rows: Sequence[Row]) -> list[str]:
    """Return the ids of riddles whose answer and aliases are not all different once normalised."""
    forms = [(row["id"], [normalise(text) for text in (row["answer"], *row["aliases"])]) for row in rows]
    return [name for name, texts in forms if len(set(texts)) != len(texts) or "" in texts]


def second_right_choices(rows: Sequence[Row]) -> list[str]:
    """Return the ids of riddles whose bank holds more than one accepted word, or the same word twice."""
    found = []
    for row in rows:
        accepted = {normalise(text) for text in (row["answer"], *row["aliases"])}
        bank = [normalise(choice) for choice in row["choices"]]
        if sum(word in accepted for word in bank) != 1 or len(set(bank)) != len(bank):
            found.append(row["id"])
    return found


def leaked_answers(rows: Sequence[Row]) -> set[str]:
    """Return answers and aliases that train and held-out riddles share."""
    forms = {split: {normalise(text) for row in rows if row["split"] == split
                     for text in (row["answer"], *row["aliases"])} for split in ("train", "heldout")}
    return forms["train"] & forms["heldout"]


# --- gates ---------------------------------------------------------------------------------------------------------


def check(data: str, rows: Sequence[Row]) -> list[Gate]:
    """Return every gate of one of the kit's own files ("riddles", "physical" or "science")."""
    return [*count_gates(data, rows), *balance_gates(data, rows), *word_gates(data, rows)]


def count_gates(data: str, rows: Sequence[Row]) -> list[Gate]:
    """Return the gates of sizes, levels and ids."""
    chosen: dict[str, Callable[[Row], bool]] = {
        "rows": lambda row: True,
        "train rows": lambda row: row["split"] == "train",
        "held-out rows": lambda row: row["split"] == "heldout",
        "level 1": lambda row: row["difficulty"] == 1,
        "level 1, train": lambda row: row["difficulty"] == 1 and row["split"] == "train",
        "level 2": lambda row: row["difficulty"] == 2,
        "level 3": lambda row: row["difficulty"] == 3,
    }
    gates = [Gate(data, name, sum(map(chosen[name], rows)), low, high) for name, (low, high) in COUNTS[data].items()]
    numbers = [int(row["id"].rsplit("-", 1)[1]) for row in rows]
    return [*gates, Gate(data, "ids out of sequence", sum(n != i for i, n in enumerate(numbers, start=1)), 0, 0)]


def balance_gates(data: str, rows: Sequence[Row]) -> list[Gate]:
    """Return the gates of positions and lengths."""
    two = data == "physical"
    low, high = (48, 52) if two else (24, 26)
    parts = {split: [row for row in rows if row["split"] == split] for split in sorted({r["split"] for r in rows})}
    gates = []
    for split, part in parts.items():
        shares = position_shares(part)
        gates += [Gate(data, f"right option at {'AB'[place] if two else 'ABCD'[place]}, {split} (%)", share, low, high)
                  for place, share in shares.items()]
    low, high = (45, 55) if two else (20, 30)
    return [*gates, Gate(data, "choose the longer (%)", longest_option_accuracy(rows), low, high)]


def word_gates(data: str, rows: Sequence[Row]) -> list[Gate]:
    """Return the gates of wording: near-duplicates, giveaway words, and of riddles their answers."""
    gates = [Gate(data, "nearest two items (token-set ratio)", nearest_pair(rows)[0], 0, 84.999)]
    if data != "riddles":
        most = 58 if data == "physical" else 33
        return [*gates, Gate(data, "bag of words, 5 folds (%)", bag_of_words_accuracy(rows), 0, most)]
    distinct = len({normalise(row["answer"]) for row in rows})
    return [*gates, Gate(data, "distinct answers", distinct, 600, len(rows)),
            Gate(data, "answer inside its riddle", len(answers_in_riddle(rows)), 0, 0),
            Gate(data, "aliases repeated", len(repeated_aliases(rows)), 0, 0),
            Gate(data, "banks with two right words", len(second_right_choices(rows)), 0, 0),
            Gate(data, "answers in both splits", len(leaked_answers(rows)), 0, 0)]
