"""Refuse a training that cannot work before it costs anything: value, rule, cure.

`check_settings` needs neither model nor tokenizer and runs before anything is downloaded, `check_lengths` needs the
tokenizer, `check_budget` lets the base model answer a few of the problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from problama_utils.config import GRPOSettings, Profile
from problama_utils.errors import CourseError
from problama_utils.prompts import Message

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# `<answer>`, one word and `</answer>` are 7 tokens for Llama 3 and 9 for SmolLM2; nothing shorter earns the format.
SHORTEST_ANSWER_TOKENS = 7
BUDGET_SAMPLE = 8  # problems that the base model answers before a training
MOST_LEFT_OUT = 0.1  # share of the problems that may be too long for the window; PIQA has 1 in 100
BUDGET_MARGIN = 16  # tokens that it may go on beyond the budget, to see by how much it overruns


def check_settings(task: str, settings: GRPOSettings, profile: Profile, chats: Sequence[Sequence[Message]]) -> None:
    """Refuse what cannot work with any tokenizer.

    Args:
        task: for the messages.
        settings: of the task.
        profile: its `max_seq_length` bounds prompt + completion.
        chats: the prompts to be trained on.

    Raises:
        CourseError: fewer problems than prompts per step, a budget in which no tagged answer fits, or more
            than a tenth of prompts whose words alone (a token never spans two) leave no room for the completion.
    """
    if len(chats) < settings.prompts_per_step:
        raise CourseError(
            f"{task}: there are {len(chats)} problems, but a step takes prompts_per_step = {settings.prompts_per_step} "
            "different ones: raise dataset_size or lower prompts_per_step."
        )
    if settings.max_completion_length < SHORTEST_ANSWER_TOKENS:
        raise CourseError(
            f"{task}: max_completion_length = {settings.max_completion_length}, but <answer>, one word and </answer> "
            f"take at least {SHORTEST_ANSWER_TOKENS} tokens: every completion would be cut. Use 16 or more."
        )
    counts = [sum(len(turn["content"].split()) for turn in chat) for chat in chats]
    if _too_many(sum(count + settings.max_completion_length > profile.max_seq_length for count in counts), len(counts)):
        words = max(counts)
        raise CourseError(
            f"{task}: the longest prompt has {words} words, so at least as many tokens, and max_completion_length is "
            f"{settings.max_completion_length}, together more than max_seq_length = {profile.max_seq_length}: lower "
            "the completion budget or raise max_seq_length."
        )


def prompt_lengths(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the length of each prompt in tokens, as the chat template renders it."""
    encoded = tokenizer.apply_chat_template(list(dataset["prompt"]), add_generation_prompt=True, return_dict=True)
    return [len(ids) for ids in encoded["input_ids"]]


def _too_many(long: int, of: int) -> bool:
    return long > MOST_LEFT_OUT * of


def leave_out_long(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, settings: GRPOSettings, limit: int, what: str
) -> Dataset:
    """Return the dataset without the few problems whose prompt and completion exceed the window, and say how many.

    Real questions have a long tail: one PIQA question in a hundred has 300 tokens and more. Where more than a tenth
    is too long the settings are at fault, so nothing is left out and `check_lengths` refuses them.

    Args:
        dataset: problems of `training_data`.
        tokenizer: counts the tokens.
        settings: its `max_completion_length` must fit behind each prompt.
        limit: `max_seq_length` of the profile, in tokens.
        what: what the problems are called in the line on stderr.
    """
    from problama_utils.checkpoints import say

    lengths = prompt_lengths(dataset, tokenizer)
    kept = [place for place, length in enumerate(lengths) if length + settings.max_completion_length <= limit]
    left = len(lengths) - len(kept)
    if not left or _too_many(left, len(lengths)) or len(kept) < settings.prompts_per_step:
        return dataset
    say(f"{left} of {len(lengths):,} {what} problems are left out: with their completion they exceed max_seq_length = "
        f"{limit}.")
    return dataset.select(kept)


def check_lengths(lengths: Sequence[int], settings: GRPOSettings, limit: int) -> int:
    """Return the longest prompt in tokens, after making sure that prompt and completion fit the model's window.

    Raises:
        CourseError: prompt + completion exceed `limit` tokens.
    """
    longest = max(lengths)
    if longest + settings.max_completion_length > limit:
        raise CourseError(
            f"The longest prompt has {longest} tokens and max_completion_length is {settings.max_completion_length}, "
            f"together more than max_seq_length = {limit}: lower the completion budget or raise max_seq_length."
        )
    return longest


def check_budget(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, settings: GRPOSettings
) -> None:
    """Let the policy answer some of the problems greedily and refuse a budget that most of its answers overrun.

    A completion that is cut cannot close its tags, so it earns nothing, whatever it was about to say.

    Raises:
        CourseError: more than half of the answers reach `max_completion_length`.
    """
    from problama_utils.completions import complete

    chats = list(dataset.select(range(min(BUDGET_SAMPLE, len(dataset))))["prompt"])
    budget = settings.max_completion_length
    was_training = model.training
    answers = complete(model, tokenizer, chats, max_new_tokens=budget + BUDGET_MARGIN)
    model.train(was_training)
    lengths = sorted(len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in answers)  # + the stop
    overrun = sum(length > budget for length in lengths)
    if 2 * overrun > len(chats):
        middle = lengths[len(lengths) // 2]
        measured = f"{middle}" if middle < budget + BUDGET_MARGIN else f"more than {middle}"
        raise CourseError(
            f"max_completion_length = {budget}, but {overrun} of {len(chats)} answers of the untrained policy are "
            f"longer (the middle one takes {measured} tokens): they would be cut before their closing tag and earn "
            "nothing. Raise max_completion_length, show the two examples (few_shot=True), or pass strict=False to "
            "watch it fail."
        )
