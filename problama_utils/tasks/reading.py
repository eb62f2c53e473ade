"""Which option a text names by its letter, in any script; `tasks.answers` grades with it.

No rule looks at which letter it is, so that no option is easier to choose than another: what is read of "A is correct"
is read of "B is correct", and as "A magnet attracts iron" names nothing (an article, or not told from one), neither
does "B magnet attracts iron". A letter is a choice where both its sides allow it: the start, a line's end, a mark or
another letter, or in between a word that a choice can stand beside ("option", "is", "pick" before it; "is", "because",
"and" after it, none of which follows an article). A letter of a compound ("vitamin C", "E. coli", "C major") or of an
option's text counts for nothing. Any other letter counts as seen, and where two are seen, none is read.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

LETTERS = "ABCDEFGH"  # no question has more options
MAX_CHARACTERS = 2_000  # a completion longer than this is read up to here; the budget of tokens ends far earlier
LONGEST = 12_000  # a completion longer than this is no answer: tags are counted as far as here
SHORT_WORDS = 6  # a text of more words may have been cut off at an article by the budget of tokens

# Unicode's Default_Ignorable_Code_Point: nothing is drawn for them, and several count as letters.
INVISIBLE = re.compile("[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
                        "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
                        "\U000e0000-\U000e0fff]")

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

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
_DOTTED = re.compile(r"(?<![^\W_])(?:[A-Ha-h]\.){2,}[A-Ha-h](?![^\W_])")  # two are B.C. or A.M.
_GLUED = re.compile(r"[A-H](?:or|and)[A-H]")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NOUNS = _words("option options choice choices letter letters answer answers")
# Words (and pairs of words) after which a letter is a choice.
_BEFORE = _NOUNS | _words(
    "solution alternative response selection pick guess ans opt is was are were be been it's that's choose chose "
    "chosen choosing picked picking select selected selecting say said saying think thinking believe guessing prefer "
    "suggest mark circle tick check put write take so then therefore thus hence because since if and or nor either "
    "both neither not but than definitely certainly surely clearly obviously probably maybe perhaps likely possibly "
    "actually simply just only yes ok okay well correct right best seems seem appears looks equals opinion doubt sure "
    "believing that favour favor i'd here though however even still when est ist es call make")
_BEFORE_PAIRS = frozenset(f"{verb} {word}" for word, verbs in {
    "with": "go going went gone agree stick sticking stay start", "for": "vote voting opt opting go going answer",
    "on": "settle settled decide decided bet", "like": "looks seems feels sounds look", "to": "goes answer equal",
    "towards": "lean leaning"}.items()
    for verb in verbs.split())
# Words that can follow a choice and never an article.
_AFTER = _words(
    "is was are were isn't wasn't would wouldn't should shouldn't could couldn't cannot can't won't doesn't didn't "
    "has had does did do be being seems looks appears sounds makes works fits wins says feels remains because since "
    "as for so and or nor but if when though although where which that who it it's its this these those the my your "
    "their i i'd i'm you we he she they there here then than to in on at by with from of over not instead please all "
    "every too also again now alone only both either neither vs versus never best always option choice")
# "a magnets" is no English, so a word in -s stands after a choice, but for these and those in -ss, -us, -is, -as, -os.
_SINGULAR = _words(
    "lens series species means news physics mathematics sports biceps forceps thermodynamics sales yes savings "
    "clothes goods crossroads headquarters thermos electronics optics genetics mechanics athletics")
_MODAL, _BARE = _words("can will must might may"), _words(
    "be not have also work do make help never only always fit win")
_ADVERBS = _words(
    "obviously clearly definitely certainly surely probably likely perhaps maybe correct right possibly true wins")
# Nouns that take a letter, before it and after it: such a letter is no option.
_TAKES_LETTER = _words(
    "vitamin vitamins vit provitamin hepatitis influenza flu plan plans type types grade grades size sizes point "
    "points class group groups team teams section part gate room building block figure fig table appendix exhibit "
    "drive terminal platform zone series schedule phase factor line lines planet note string key scale chord bus "
    "route road street lane level stage step unit column row cell cup bra category tier rank strain serotype protein "
    "haemophilus streptococcus gene allele vertex angle node site sample beaker jar box bottle station town city "
    "country village person player student substance liquid metal material compound element molecule object system "
    "engine star spring wire plate container tube species animal plant circle triangle square district sector ward "
    "floor from between x-ray coenzyme cytochrome immunoglobulin ig receptor battery batteries trial experiment curve "
    "graph diagram picture image tank pot pan pipe seat aisle hall")
_AFTER_LETTER = _words(
    "major minor flat sharp natural battery batteries cell cells clef string strings chord chords vitamin vitamins "
    "note notes ray rays shirt shirts section sections movie movies list listed cup team grade grades student "
    "students flats sharps league side sides virus minus plus numbers bomb bombs levels forces keys majors minors "
    "clamps drives frames days")
_SPECIES = _words(
    "coli elegans subtilis difficile diff melanogaster thaliana anthracis botulinum cerevisiae albicans aegypti "
    "gambiae cereus burgdorferi faecalis faecium influenzae rerio discoideum pylori sapiens erectus habilis tetani "
    "perfringens dubliniensis auris histolytica germanica mellifera afarensis africanus rex familiaris lupus catus "
    "domesticus gallus caballus giganteus niger fumigatus flavus bovis pestis canis jejuni trachomatis pneumoniae "
    "diphtheriae megaterium thuringiensis quinquefasciatus granarius lamblia duodenalis vaginalis max hirsutum "
    "barbadense sativa cepa carota arabica canephora")
_NAMING = _NOUNS | _words("choose pick select say guess or and")  # after these even the last small letter is none
_DENIES = _words("not neither nor never except without unlike wrong incorrect false cannot")
_DENYING_PAIRS = frozenset(["anything but", "everything but", "all but", "nothing but", "other than", "rather than",
                            "instead of", "rule out", "rules out", "ruled out"])
_BETWEEN = _NOUNS | _words("the one be is was it it's that choose pick select think say believe go with")  # not "an"
_VERBS = _words("is was are were be can could would will should may might must seems looks does has sounds appears")
_DENIED_AS = _words("not never wrong incorrect false out impossible cannot")
_JOINS = _words("and or to nor through")


@lru_cache(maxsize=20_000)
def _fold(character: str) -> str:
    """Return the Latin letter or mark that a character looks like, without accents; itself where there is none."""
    plain = unicodedata.normalize("NFKD", character.translate(_FOLDED)).translate(_FOLDED)  # NFKD makes Ϲ a sigma
    return INVISIBLE.sub("", "".join(c for c in plain if unicodedata.category(c)[0] != "M"))


def folded(text: str) -> str:
    """Return the text with every character as the Latin one that it looks like: letters and tags are counted in this.

    Riddles are not graded in it: an answer in another script is another word.

    >>> folded("\\u0412 \\u24b6 <\\u0430nswer>")
    'B A <answer>'
    """
    return text[:LONGEST] if text.isascii() else "".join(map(_fold, text[:LONGEST]))


def read_letter(answer: str | None, labels: Sequence[str], choices: Sequence[str] | None = None) -> str | None:
    """Return the one choice label that an answer names, else None ("A or B" names two and is not read).

    An answer longer than `MAX_CHARACTERS` is not read. `choices` are the options' texts in the order of the labels,
    where they are known: a letter that belongs to one of them ("from A to B") is no choice.

    >>> read_letter("(b) the magnet", ["A", "B", "C", "D"])
    'B'
    >>> read_letter("A or B", ["A", "B", "C", "D"]) is None
    True
    >>> read_letter("vitamin C", "ABCD") is None, read_letter("A: block D", "ABCD", ["block D", "iron", "salt", "clay"])
    (True, 'A')
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
        self.text = text
        found = list(_WORD.finditer(text))
        self.words = [match[0] for match in found]
        self.low = [word.casefold() for word in self.words]
        edges = [0, *(edge for match in found for edge in match.span()), len(text)]
        self.gaps = [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
        self.letters = letters
        own = {label: [word.casefold() for word in _WORD.findall(folded(choice[:MAX_CHARACTERS]))]
               for label, choice in choices.items()}
        self.starts = {(label.casefold(), words[0]) for label, words in own.items() if words}
        self.pairs = {pair for words in own.values() for pair in pairwise(words)
                      if any(len(word) == 1 for word in pair) and not (pair[0] == "a" and pair[1] not in _AFTER)}
        self.known = {word for words in own.values() for word in words if len(word) > 1}

    def read(self) -> tuple[set[str], set[str]]:
        """Return the letters that are named as a choice, and all that are seen; a denied one empties the first."""
        named, article, denied, last = set(), set(), False, -9
        seen = {letter for run in _DOTTED.findall(self.text) for letter in run.upper() if letter != "."}
        for place, word in enumerate(self.words):
            if len(word) > 1:
                seen |= self._inside(word, place)
                if "-" in word and self._letter(word.split("-")[-1]) and self.low[place].split("-")[-2] in _NOUNS:
                    named.add(word[-1].upper())
                continue
            letter = self._letter(word)
            if letter is None:
                continue
            if self._compound(place) or self._joined(place, last):
                last = place
            elif self._cut_off(place):
                continue
            elif self._follows(place):
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
        if word.casefold() in self.known or self._in_compound(place):
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
        if (left, self.low[place]) in self.starts:  # "D: a", cut off where the option's text begins
            return True
        if (left, self.low[place]) in self.pairs or (self.low[place], right) in self.pairs or before.endswith("°"):
            return True
        if after.startswith(("#", "♯", "♭", "++")):
            return True
        if (after == "." and len(right) == 1) or (before == "." and len(left) == 1):
            return True
        if after.strip() == "." and right in _SPECIES:
            return True
        return self._in_compound(place) or (self._beside(place) and left.isdigit() and len(left) > 1)

    def _in_compound(self, place: int) -> bool:
        """Whether a noun that takes a letter stands beside the word: vitamin B12, AAA batteries."""
        return ((self._beside(place) and self._word(place - 1) in _TAKES_LETTER)
                or (self._beside(place + 1) and self._word(place + 1) in _AFTER_LETTER))

    def _joined(self, place: int, last: int) -> bool:
        """Whether the letter goes on with a compound: vitamins A, C and E; from A to B."""
        if place - 1 == last:
            return self.gaps[place].strip() in {",", "/", "&", "-", "–"}
        return place - 2 == last and self._word(place - 1) in _JOINS

    def _cut_off(self, place: int) -> bool:
        """Whether a small letter ends the text as an article would whose noun is missing: "… and the swamp is a"."""
        last = place == len(self.words) - 1 and not self.gaps[-1] and self._beside(place)
        return last and place > SHORT_WORDS and self.words[place].islower() and self._word(place - 1) not in _NAMING

    def _follows(self, place: int) -> bool:
        """Whether what comes after the letter can follow a choice, where an article would need its noun."""
        if not self._beside(place + 1):
            return True
        right, then = self._word(place + 1), self._word(place + 2)
        if self._letter(right) or right.isdigit():
            return True
        if right in _MODAL:
            return then in _BARE
        plural = len(right) > 3 and right.endswith("s") and right[-2] not in "suiao'" and right not in _SINGULAR
        return plural or right in _AFTER or (right in _ADVERBS and not self._beside(place + 2))

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
