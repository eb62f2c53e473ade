"""Read the final answer out of a completion and grade it: right, wrong, or unjudged.

Grading knows nothing of rewards. A reward may pay for form or brevity; whether an answer is *right* is decided here,
once, and the evaluation imports this module and never `rewards`.

How a letter is read (`read_letter`). No rule looks at which letter it is, so that no option is easier to choose than
another: what is read of "A is correct" is read of "B is correct", and as "A magnet attracts iron" names nothing (an
article, or at least not told from one), neither does "B magnet attracts iron". A letter is a choice where both its
sides allow it: the start, a line's end, a mark or another letter, or in between a word that a choice can stand beside
("option", "is", "pick" before it; "is", "because", "and" after it, none of which follows an article). A letter that
belongs to a compound ("vitamin C", "E. coli", "C major") or to the text of an option counts for nothing; any other
letter counts as seen, and where two are seen, none is read. Every function here is linear in what it reads, and reads
nothing longer than `LONGEST`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from enum import Enum
from functools import lru_cache
from itertools import pairwise

MAX_CHARACTERS = 2_000  # a completion longer than this is read up to here; the budget of tokens ends far earlier
LONGEST = 12_000  # a completion longer than this is no answer: tags are counted as far as here
MARKS_IN_A_ROW = 30  # Unicode's stream-safe bound: normalising takes the square of a longer run

# DOTALL: answers may stand on a line of their own. Without it every multi-line answer silently scores 0.
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
# What a reader takes for a tag: `<answer >`, `< /ANSWER>`, `<answer id="2">`. A second answer must not hide in one.
_OPENING, _CLOSING = (re.compile(rf"<{slash}\s*answer(?:\s[^<>]*)?>", re.IGNORECASE) for slash in ("", r"\s*/"))
_LEADS_IN = re.compile(r"\b(?:answer|solution)\s*(?:is\b|:)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[!?]|\.(?!\d|\w\.)")
# Unicode's Default_Ignorable_Code_Point: nothing is drawn for them, and several count as letters.
_INVISIBLE = re.compile("[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
                        "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
                        "\U000e0000-\U000e0fff]")

# What stands before a riddle's answer and is no part of it, in words without marks ("it's" is "it s"). Certainty may
# stand there, doubt and denial may not: "not", "maybe", "could be" and "like" stay and make the answer a wrong one.
_BE = r"(?:am|is|are|was|were|be|must be|should be|would be|will be|ll be|d be|has to be|have to be|had to be|s|m|re)"
_WHO = r"(?:i|you|we|they|he|she|it|this|that|these|those|here|there)"
_LEAD_IN = re.compile(
    rf"(?:(?:a|an|the|its|my|your|our|their|his|her"
    rf"|(?:what|who) (?:am i|are we|are you|are they|are these|are those|is it|is this|is that|is he|is she)"
    rf"|{_WHO} (?:all |both )?{_BE}(?: (?:surely|clearly|certainly|definitely|obviously|simply|just|of course))?"
    rf"|im|youre|theyre|thats|hes|shes|i (?:think|believe|guess|say|would say|d say)(?: that)?"
    rf"|(?:(?:my|the|your|our) )?(?:final |correct |right )?(?:answer|guess|solution) (?:is|was|must be|would be)) )+")

# Look-alikes of the letters A to H, of the tags' letters and of their brackets, after Unicode's confusables; what NFKC
# folds (full width, circled, mathematical) is not listed again, but the Greek letters that it leaves are.
_ALIKE = {
    "A": "ΑАᎪᗅꓮ𐊠ᴀ🅐🅰", "B": "ΒВвᏴᗷꓐ𐊂𐊡𐌁Ꞵʙᏼ🅑🅱", "C": "ϹСⲤᏟꓚ𐊢𐌂𐐕𐔜ᴄ🅒🅲", "D": "Ꭰᗞᗪꓓᴅ🅓🅳",
    "E": "⋿ΕЕⴹᎬꓰ𐊆ᴇ🅔🅴", "F": "ꞘϜᖴꓝ𐊇𐊥𐔥ꜰ🅕🅵", "G": "ԌᏀᏳꓖԍɢ🅖🅶", "H": "ΗНнⲎᎻᕼꓧ𐋏ʜꮋ🅗🅷",
    "a": "⍺ɑαа", "b": "ƄЬᏏᑲᖯβ", "c": "ϲⲥсꮯ𐐽", "d": "ԁᏧᑯꓒ", "e": "℮ꬲеҽ", "f": "ꬵꞙẝք", "g": "ɡᶃƍց", "h": "һհᏂ",
    "n": "ոռпɴ", "s": "ѕꜱƽ", "w": "ԝաѡᴡ", "r": "гᴦꮁʀ", "<": "‹⟨〈ᐸ❬❮❰", ">": "›⟩〉ᐳ❭❯❱", "/": "⁄∕╱⧸", "'": "‘’ʼ",
}  # fmt: skip
_FOLDED = {ord(alike): letter for letter, all_alike in _ALIKE.items() for alike in all_alike}
_FOLDED |= {0x1F1E6 + place: letter for place, letter in enumerate("ABCDEFGH")}  # the letters that flags are made of

LETTERS = "ABCDEFGH"  # no question has more options
_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
_GLUED = re.compile(r"[A-H](?:or|and)[A-H]")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NOUNS = _words("option options choice choices letter letters answer answers")
# Words (and pairs of words) after which a letter is a choice.
_BEFORE = _NOUNS | _words(
    "solution alternative response selection pick guess ans opt is was are were be been it's that's choose chose chosen "
    "choosing picked picking select selected selecting say said saying think thinking believe guessing prefer suggest "
    "mark circle tick check put write take so then therefore thus hence because since if and or nor either both neither "
    "not but than definitely certainly surely clearly obviously probably maybe perhaps likely possibly actually simply "
    "just only yes ok okay well correct right best seems seem appears looks equals opinion doubt sure believing that "
    "favour favor i'd here though however even still when est ist es call make")
_BEFORE_PAIRS = frozenset(f"{verb} {word}" for word, verbs in {
    "with": "go going went gone agree stick sticking stay start", "for": "vote voting opt opting go going answer",
    "on": "settle settled decide decided bet", "like": "looks seems feels sounds look", "to": "answer equal"}.items()
    for verb in verbs.split())
# Words that can follow a choice and never an article.
_AFTER = _words(
    "is was are were isn't wasn't would wouldn't should shouldn't could couldn't cannot can't won't doesn't didn't has "
    "had does did do be being seems looks appears sounds makes works fits wins says feels remains because since as for "
    "so and or nor but if when though although where which that who it it's its this these those the my your their i i'd "
    "i'm you we he she they there here then than to in on at by with from of over not instead please all every too also "
    "again now alone only both either neither vs versus never best always option choice")
_MODAL, _BARE = _words("can will must might may"), _words("be not have also work do make help never only always fit win")
_ADVERBS = _words("obviously clearly definitely certainly surely probably likely perhaps maybe correct right possibly "
                  "true wins")
# Nouns that take a letter, before it and after it: such a letter is no option.
_TAKES_LETTER = _words(
    "vitamin vitamins vit provitamin hepatitis influenza flu plan plans type types grade grades size sizes point points "
    "class group groups team teams section part gate room building block figure fig table appendix exhibit drive terminal "
    "platform zone series schedule phase factor line lines planet note string key scale chord bus route road street lane "
    "level stage step unit column row cell cup bra category tier rank mark-up strain serotype protein haemophilus "
    "streptococcus gene allele vertex angle node set side end site sample beaker jar box bottle station town city "
    "country village person player student substance liquid metal material compound element molecule object system "
    "engine star spring wire plate container tube species animal plant circle triangle square district sector ward floor "
    "from between x-ray coenzyme cytochrome immunoglobulin ig receptor omega battery batteries state process test "
    "trial experiment solutions model curve graph diagram picture image tank pot pan pipe seat aisle hall")
_AFTER_LETTER = _words("major minor flat sharp natural battery batteries cell cells clef string strings chord chords "
                       "vitamin vitamins note notes ray rays shirt shirts section sections movie movies list listed cup "
                       "team grade student flats sharps league side sides virus minus plus")
_SPECIES = _words(
    "coli elegans subtilis difficile diff melanogaster thaliana anthracis botulinum cerevisiae albicans aegypti gambiae "
    "cereus burgdorferi faecalis faecium influenzae rerio discoideum pylori sapiens erectus habilis tetani perfringens "
    "dubliniensis auris histolytica germanica mellifera afarensis africanus rex familiaris lupus catus domesticus "
    "gallus caballus giganteus niger fumigatus flavus bovis pestis canis jejuni trachomatis pneumoniae diphtheriae "
    "megaterium thuringiensis quinquefasciatus granarius lamblia duodenalis vaginalis max hirsutum barbadense sativa "
    "cepa carota arabica canephora")
_DENIES = _words("not neither nor never except without unlike wrong incorrect false cannot")
_DENYING_PAIRS = frozenset(["anything but", "everything but", "all but", "nothing but", "other than", "rather than",
                            "instead of", "rule out", "rules out", "ruled out"])
_BETWEEN = _NOUNS | _words("the one be is was it it's that choose pick select think say believe go with")  # not "an"
_VERBS = _words("is was are were be can could would will should may might must seems looks does has sounds appears")
_DENIED_AS = _words("not never wrong incorrect false out impossible cannot")
_JOINS = _words("and or to nor through")


class Verdict(Enum):
    """What a judge can say of a completion. `UNJUDGED` is not `WRONG`: no single answer could be read."""

    RIGHT = "right"
    WRONG = "wrong"
    UNJUDGED = "unjudged"


def visible(text: str) -> str:
    """Return the text as it is seen: NFKC (full width and ligatures as plain letters), nothing invisible.

    No more than `LONGEST` characters are read, and no more than 30 marks on one letter.

    >>> visible("b\\u200be\\u00ade \\u3164")
    'bee '
    """
    text = text[:LONGEST]
    if text.isascii():
        return text
    return _INVISIBLE.sub("", unicodedata.normalize("NFKC", _few_marks(text)))


def _few_marks(text: str) -> str:
    """Return the text without the marks beyond the 30th in a row."""
    kept, row = [], 0
    for character in text:  # the two are Japanese voicing marks of half width, which NFKC makes marks
        row = row + 1 if unicodedata.category(character)[0] == "M" or character in "\uff9e\uff9f" else 0
        if row <= MARKS_IN_A_ROW:
            kept.append(character)
    return "".join(kept)


@lru_cache(maxsize=20_000)
def _fold(character: str) -> str:
    """Return the Latin letter or mark that a character looks like, without accents; itself where there is none."""
    plain = unicodedata.normalize("NFKD", character).translate(_FOLDED)
    return _INVISIBLE.sub("", "".join(c for c in plain if unicodedata.category(c)[0] != "M"))


def folded(text: str) -> str:
    """Return the text with every character as the Latin one that it looks like: letters and tags are counted in this.

    Riddles are not graded in it: an answer in another script is another word.

    >>> folded("\\u0412 \\u24b6 <\\u0430nswer>")
    'B A <answer>'
    """
    return text if text.isascii() else "".join(map(_fold, text))


def strict_answer(completion: str) -> str | None:
    """Return the text between the tags, if the completion has exactly one well-formed, non-empty pair; else None.

    Two pairs are two answers, and a judge does not get to pick the better one. Tags are counted over the whole
    completion and however they are spelled, so that no second answer hides behind the limit or in `<answer >`.

    >>> strict_answer("<answer>A map</answer>")
    'A map'
    >>> strict_answer("<answer>map</answer> or <answer>globe</answer>") is None
    True
    """
    if len(completion) > LONGEST:
        return None
    found = _TAGGED.findall(completion[:MAX_CHARACTERS])
    if len(found) != 1 or _tags(completion) != (1, 1):
        return None
    inside = found[0].strip()
    return inside if visible(inside).strip() else None


def lenient_answer(completion: str, choices: Sequence[str] | None = None) -> str | None:
    """Return the strict answer, or the best reading of a completion without proper tags, or None.

    In this order: one pair of tags, however spelled; what follows an opening tag that was never closed; what follows
    the last "answer is" or "answer:", on its line or the next; the whole text, when it is one line; the line that
    names the only letter in the text. Meant for measuring how much of a gain is format.

    Args:
        completion: what the policy has said.
        choices: the options' texts, where there are any; see `read_letter`.

    >>> lenient_answer("The answer is a map."), lenient_answer("<answer >a map</answer >")
    ('a map', 'a map')
    >>> lenient_answer("The answer is:\\nB"), lenient_answer("B\\nBecause iron rusts")
    ('B', 'B')
    """
    strict = strict_answer(completion)
    if strict is not None or len(completion) > LONGEST:
        return strict
    opened, closed = _tags(completion)
    text = visible(completion[:MAX_CHARACTERS]).strip()
    if opened == 1 and closed <= 1:
        after = _OPENING.split(text, maxsplit=1)[1:]
        return _CLOSING.split(after[0])[0].strip() or None if after else None
    if opened or closed:
        return None
    announced = list(_LEADS_IN.finditer(text))
    told = _announced(text[announced[-1].end():]) if announced else None
    if told:
        return told
    if text and "\n" not in text and not announced:
        return text
    letter = read_letter(text, LETTERS, choices)
    return next((line.strip() for line in text.split("\n") if letter and read_letter(line, LETTERS, choices) == letter),
                text if letter else None)


def _announced(rest: str) -> str | None:
    """Return the first sentence of what follows an announcement, from its line or the next that has any."""
    line = next((line for line in rest.split("\n") if any(map(str.isalnum, line))), "").lstrip(" \t:=*_")
    end = _SENTENCE_END.search(line)
    if end and re.match(r"\W*\w\.\s+[a-z]", line):  # "B. the magnet", "E. coli": the first stop ends no sentence
        end = _SENTENCE_END.search(line, end.end())
    return (line[: end.start()] if end else line).strip() or None


def normalise(answer: str) -> str:
    """Return the answer as graders compare it: lower case, no lead-in, article or punctuation, single spaces.

    Only the first `MAX_CHARACTERS` are read.

    >>> normalise("  It's  a MAP! "), normalise("They must be maps.")
    ('map', 'maps')
    """
    text = visible(visible(answer[:MAX_CHARACTERS]).casefold())
    # Letters, numbers and the marks that belong to letters: without them Hindi words differ in no vowel.
    text = "".join(mark if unicodedata.category(mark)[0] in "LMN" else " " for mark in text)
    text = " ".join(text.split())
    lead_in = _LEAD_IN.match(text)
    return text[lead_in.end():] if lead_in else text


def grade(answer: str | None, accepted: Iterable[str]) -> Verdict:
    """Compare one read answer with the accepted ones, after normalising both sides.

    Args:
        answer: from `strict_answer` or `lenient_answer`; None is unjudged, and so is one over `MAX_CHARACTERS`.
        accepted: the answer and its aliases. A list of several guesses inside the tags equals none of them.

    >>> grade("The honeybee.", ["bee", "honeybee"])
    <Verdict.RIGHT: 'right'>
    """
    given = normalise(answer) if answer is not None and len(answer) <= MAX_CHARACTERS else ""
    if not given:
        return Verdict.UNJUDGED
    return Verdict.RIGHT if given in {normalise(text) for text in accepted} else Verdict.WRONG


def read_letter(answer: str | None, labels: Sequence[str], choices: Sequence[str] | None = None) -> str | None:
    """Return the one choice label that an answer names, else None ("A or B" names two and is not read).

    Args:
        answer: from `strict_answer` or `lenient_answer`; what is longer than `MAX_CHARACTERS` is not read.
        labels: the letters on offer.
        choices: the options' texts in the order of the labels, where they are known: a letter that belongs to one of
            them ("from A to B") is no choice, and a letter before its own text is one ("B magnet").

    >>> read_letter("(b) the magnet", ["A", "B", "C", "D"])
    'B'
    >>> read_letter("A or B", ["A", "B", "C", "D"]) is None
    True
    >>> read_letter("vitamin C", "ABCD") is None, read_letter("C vitamin B", "ABC", ["iron", "salt", "vitamin B"])
    (True, 'C')
    """
    if answer is None or len(answer) > MAX_CHARACTERS:
        return None
    text = folded(answer)[: 2 * MAX_CHARACTERS]
    named, seen = _Reader(text, {*labels, *LETTERS}, dict(zip(labels, choices or (), strict=False))).read()
    letter = named.pop() if len(named) == 1 else None
    return letter if letter in list(labels) and seen == {letter} else None


class _Reader:
    """The words of one text and what its single letters stand for; see the module."""

    def __init__(self, text: str, letters: set[str], choices: dict[str, str]):
        found = list(_WORD.finditer(text))
        self.words = [match[0] for match in found]
        self.low = [word.casefold() for word in self.words]
        edges = [0, *(edge for match in found for edge in match.span()), len(text)]
        self.gaps = [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
        self.letters = letters
        own = {label: [word.casefold() for word in _WORD.findall(folded(choice[:MAX_CHARACTERS]))]
               for label, choice in choices.items()}
        self.texts = {label: words[words[:1] in (["a"], ["an"], ["the"]):] for label, words in own.items()}
        self.pairs = {pair for words in own.values() for pair in pairwise(words)
                      if any(len(word) == 1 for word in pair) and not (pair[0] == "a" and pair[1] not in _AFTER)}
        self.known = {word for words in own.values() for word in words if len(word) > 1}

    def read(self) -> tuple[set[str], set[str]]:
        """Return the letters that are named as a choice, and all that are seen; a denied one empties the first."""
        named, seen, article, denied, last = set(), set(), set(), False, -9
        for place, word in enumerate(self.words):
            if len(word) > 1:
                seen |= self._inside(word, place)
                if "-" in word and self._letter(word.split("-")[-1]) and self.low[place].split("-")[-2] in _NOUNS:
                    named.add(word[-1].upper())
                continue
            letter = self._letter(word)
            if letter is None:
                continue
            if len(self.words) == 1 and "°" not in self.gaps[0]:
                return {letter}, {letter}
            if self._compound(place) or self._joined(place, last):
                last = place
            elif self._follows(place, letter):
                seen.add(letter)
                if self._allowed_before(place):
                    named.add(letter)
                denied = denied or self._denied(place)
            else:
                article.add(letter)
        seen |= named | (article if len(article) > 1 else set())
        return set() if denied else named, seen

    def _letter(self, word: str) -> str | None:
        return word.upper() if len(word) == 1 and word.upper() in self.letters else None

    def _word(self, place: int) -> str:
        return self.low[place] if 0 <= place < len(self.low) else ""

    def _beside(self, gap: int) -> bool:
        """Whether two words are parted by spaces only, so that they can belong together."""
        return 0 < gap < len(self.gaps) - 1 and not self.gaps[gap].strip(" \t")

    def _inside(self, word: str, place: int) -> set[str]:
        """Return the letters that a reader sees in a longer word: A1, 2B, AB, abc, A-B, BorA."""
        if word.casefold() in self.known or (self._beside(place) and self._word(place - 1) in _TAKES_LETTER):
            return set()
        parts = word.split("-") if "-" in word else [word]
        if all(map(self._letter, parts)):
            return {part.upper() for part in parts}
        letters = [c for c in word if not c.isdigit()]
        if len(letters) == 1 and len(letters) < len(word) and self._letter(letters[0]):
            return {letters[0].upper()}
        if _GLUED.fullmatch(word):
            return {word[0], word[-1]}
        in_a_row = word.upper() in LETTERS
        mixed = word == word.upper() or (word != word.lower() and word[1:] != word[1:].lower())
        return set(word.upper()) if (in_a_row or mixed) and set(word.upper()) <= self.letters else set()

    def _compound(self, place: int) -> bool:
        """Whether the letter belongs to its neighbours: vitamin C, E. coli, C major, A.M., 40 °C, an option's text."""
        before, after = self.gaps[place], self.gaps[place + 1]
        left, right = self._word(place - 1), self._word(place + 1)
        if (left, self.low[place]) in self.pairs or (self.low[place], right) in self.pairs or before.endswith("°"):
            return True
        if (after == "." and len(right) == 1) or (before == "." and len(left) == 1):
            return True
        if after.strip() == "." and right in _SPECIES:
            return True
        if self._beside(place) and (left in _TAKES_LETTER or (left.isdigit() and len(left) > 1)):
            return True
        return self._beside(place + 1) and right in _AFTER_LETTER

    def _joined(self, place: int, last: int) -> bool:
        """Whether the letter goes on with a compound: vitamins A, C and E; from A to B."""
        if place - 1 == last:
            return self.gaps[place].strip() in {",", "/", "&", "-", "–"}
        return place - 2 == last and self._word(place - 1) in _JOINS

    def _follows(self, place: int, letter: str) -> bool:
        """Whether what comes after the letter can follow a choice, where an article would need its noun."""
        if not self._beside(place + 1):
            return True
        right, then = self._word(place + 1), self._word(place + 2)
        if self._letter(right) or right.isdigit() or self._own_text(place + 1, letter):
            return True
        if right in _MODAL:
            return then in _BARE
        return right in _AFTER or (right in _ADVERBS and not self._beside(place + 2))

    def _own_text(self, place: int, letter: str) -> bool:
        """Whether the words from there on are those of the letter's own option, and of no other as much."""
        shared = {}
        for label, words in self.texts.items():
            given = self.low[place + (self._word(place) in ("a", "an", "the")):][: len(words)]
            shared[label] = next((n for n, (a, b) in enumerate(zip(given, words, strict=False)) if a != b),
                                 min(len(given), len(words)))
        return shared.get(letter, 0) > max((n for label, n in shared.items() if label != letter), default=0)

    def _allowed_before(self, place: int) -> bool:
        if not self._beside(place):
            return True
        left = self._word(place - 1)
        if left in _BEFORE or self._letter(left) or f"{self._word(place - 2)} {left}" in _BEFORE_PAIRS:
            return True
        return left in ("the", "my") and self._word(place + 1) in _NOUNS and self._beside(place + 1)

    def _denied(self, place: int) -> bool:
        """Whether the letter is denied: a judge does not infer the answer from what it is not."""
        back = place - 1
        while back >= 0 and not set(self.gaps[back + 1]) - set(" \t\n\"'([*_“”") and self.low[back] in _BETWEEN:
            back -= 1
        if back >= 0 and not set(self.gaps[back + 1]) - set(" \t\n\"'([*_“”"):
            word = self.low[back]
            if word in _DENIES or word.endswith("n't") or f"{self._word(back - 1)} {word}" in _DENYING_PAIRS:
                return True
        if self._beside(place + 1):
            verb, then = self._word(place + 1), self._word(place + 2)
            if then in ("the", "a", "an"):
                then = self._word(place + 3)
            return verb == "cannot" or verb.endswith("n't") or (verb in _VERBS and then in _DENIED_AS)
        return False


def grade_letter(
    answer: str | None, right: str, labels: Sequence[str], choices: Sequence[str] | None = None
) -> Verdict:
    """Grade a multiple-choice answer: unjudged unless exactly one label is named."""
    letter = read_letter(answer, labels, choices)
    if letter is None:
        return Verdict.UNJUDGED
    return Verdict.RIGHT if letter == right else Verdict.WRONG


def judge(
    answer: str | None, right: str, aliases: Iterable[str] | None = None, labels: Sequence[str] | None = None,
    choices: Sequence[str] | None = None,
) -> Verdict:
    """Grade one read answer as its problem wants it: a letter where there are labels, else a text with its aliases.

    >>> judge("b.", "B", labels=["A", "B"]), judge("a honeybee", "bee", ["honeybee"])
    (<Verdict.RIGHT: 'right'>, <Verdict.RIGHT: 'right'>)
    """
    return grade_letter(answer, right, labels, choices) if labels else grade(answer, [right, *(aliases or ())])


def _tags(completion: str) -> tuple[int, int]:
    """How many opening and closing tags a reader would see, however spelled, over the whole completion."""
    seen = folded(completion)
    return len(_OPENING.findall(seen)), len(_CLOSING.findall(seen))
