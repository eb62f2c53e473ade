"""`Task`: what is asked, what counts as right and what is paid, in one frozen value; the course has three.

A task of your own is one more value, see the README. Rewards are functions that TRL can call; () stands for the slides'
three. Their code is not reached from here, so that evaluation never meets them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from problama_utils import CourseError
from problama_utils.config import GRPOSettings
from problama_utils.tasks.answers import Verdict, judge, strict_answer

if TYPE_CHECKING:
    from datasets import Dataset

Row = Mapping[str, Any]
Message = dict[str, str]


def judge_tagged(completion: str, asked: Row) -> Verdict:
    """Judge the answer inside the tags against `answer`, and `aliases`, `labels` and `choices` where a row has them."""
    given = strict_answer(completion)
    return judge(given, asked["answer"], *map(asked.get, ("aliases", "labels", "choices")))


@dataclass(frozen=True)
class Task:
    """One kind of problem.

    `load(split, difficulty=…)` gives the rows of "train" and "heldout"; a row has an `id`, everything else is the
    task's own. What TRL, the rewards and the judge read of it is what `asked` returns.
    """

    name: str  # of the run folder and of the profile's settings, such as "riddles"
    load: Callable[..., Dataset]
    question: Callable[[Row], str]  # the user turn
    answer: Callable[[Row], str]  # the right answer: a text, or a letter
    system: str  # the system prompt
    examples: Callable[[], Sequence[Row]] = tuple  # solved rows, shown as chat turns before a question
    columns: Callable[[Row], dict[str, Any]] = lambda row: {}  # more that rewards and judge read, such as `labels`
    chance: float | None = None  # share of answers that guessing gets right; None where there are no options
    rewards: tuple[Callable[..., list[float | None]], ...] = ()  # () = the slides' three
    maxima: tuple[float, ...] = ()  # the most that each of them pays, in their order
    judge: Callable[[str, Row], Verdict] = judge_tagged  # of a completion, for held-out accuracy
    settings: GRPOSettings | None = None  # of a training; None takes the profile's of that name

    def __post_init__(self) -> None:
        names = [getattr(function, "__name__", "") for function in self.rewards]
        if not (isinstance(self.name, str) and self.name.isidentifier()):
            raise CourseError(f"A task cannot be called {self.name!r}: use a word such as 'sums', since its run folder "
                              "is named so.")
        if len(set(names)) < len(names) or "" in names:
            raise CourseError(f"The rewards of task {self.name!r} are called {names}: give every function a name of "
                              "its own, since the log's columns are named so.")
        if self.maxima and len(self.maxima) != len(self.rewards):
            raise CourseError(f"Task {self.name!r} has {len(self.rewards)} rewards and {len(self.maxima)} maxima: give "
                              "one for each, or none at all.")

    def messages(self, row: Row, *, few_shot: bool = True, system: bool = True) -> list[Message]:
        """Return the chat that asks one row."""
        return self.turns(self.question(row), few_shot=few_shot, system=system)

    def turns(self, question: str, *, few_shot: bool = True, system: bool = True) -> list[Message]:
        """Return a chat: system prompt, solved examples, a question in the task's form."""
        turns = [{"role": "system", "content": self.system}] if system else []
        for example in self.examples() if few_shot else ():
            turns += [{"role": "user", "content": self.question(example)},
                      {"role": "assistant", "content": f"<answer>{self.answer(example)}</answer>"}]
        return [*turns, {"role": "user", "content": question}]

    def asked(self, row: Row, *, few_shot: bool) -> dict[str, Any]:
        """Return one row as TRL, the rewards and the judge read it: `id`, `prompt`, `answer` and the task's columns."""
        return {"id": row["id"], "prompt": self.messages(row, few_shot=few_shot), "answer": self.answer(row),
                **self.columns(row)}
