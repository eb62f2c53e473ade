"""How a problem is put to the model: a system prompt, perhaps two solved examples, then the problem.

All three tasks ask for the same form, `<answer>…</answer>`, so that what a policy learns about the form in one task
can be looked for in another. Messages are plain role/content dictionaries; the tokenizer's chat template does the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from problama_utils.tasks.problems import load_few_shot

Message = dict[str, str]

SYSTEM_PROMPTS = {
    "riddles": "Solve the riddle. Reply with one short answer inside tags, like this: <answer>word</answer>",
    "piqa": "Choose the option that works. Reply with its letter inside tags, like this: <answer>A</answer>",
    "science": "Answer the question. Reply with the letter of your choice inside tags, like this: <answer>A</answer>",
}


def riddle_question(row: Mapping[str, Any]) -> str:
    """Return the user turn of a riddle."""
    return f"Riddle: {row['riddle']}"


def piqa_question(row: Mapping[str, Any]) -> str:
    """Return the user turn of a physical-interaction problem, with its two options lettered as on the slides."""
    return f"Question: {row['goal']}\nOption A: {row['sol1']}\nOption B: {row['sol2']}"


def science_question(row: Mapping[str, Any]) -> str:
    """Return the user turn of a science question; the letters are the row's own labels (3 to 5 of them)."""
    options = [f"{label}: {text}" for label, text in zip(row["labels"], row["choices"], strict=True)]
    return "\n".join([f"Question: {row['question']}", *options])


def piqa_letter(row: Mapping[str, Any]) -> str:
    """Return the letter of the right option: label 0 is A, label 1 is B."""
    return "AB"[row["label"]]


def example_turns(task: str) -> list[Message]:
    """Return the slides' two solved examples of a task as user and assistant turns; science has none (zero-shot)."""
    turns: list[Message] = []
    for row in load_few_shot("riddles" if task == "riddles" else "physical") if task != "science" else []:
        question = riddle_question(row) if task == "riddles" else piqa_question(row)
        answer = row["answer"] if task == "riddles" else piqa_letter(row)
        turns.append({"role": "user", "content": question})
        turns.append({"role": "assistant", "content": f"<answer>{answer}</answer>"})
    return turns


def riddle_messages(row: Mapping[str, Any], *, few_shot: bool = True) -> list[Message]:
    """Return the chat that asks one riddle."""
    return _chat("riddles", riddle_question(row), few_shot, system=True)


def piqa_messages(row: Mapping[str, Any], *, few_shot: bool = True) -> list[Message]:
    """Return the chat that asks one physical-interaction problem."""
    return _chat("piqa", piqa_question(row), few_shot, system=True)


def science_messages(row: Mapping[str, Any], *, system: bool = True) -> list[Message]:
    """Return the zero-shot chat that asks one science question, with or without the system prompt."""
    return _chat("science", science_question(row), few_shot=False, system=system)


def _chat(task: str, question: str, few_shot: bool, system: bool) -> list[Message]:
    head = [{"role": "system", "content": SYSTEM_PROMPTS[task]}] if system else []
    turns = example_turns(task) if few_shot else []
    return [*head, *turns, {"role": "user", "content": question}]
