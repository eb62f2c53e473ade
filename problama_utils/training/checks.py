"""Refuse a training that cannot work before it costs anything: value, rule, cure.

`check_call` looks at the arguments alone, `check_settings` at the problems too; both run before anything is downloaded.
`check_lengths` needs the tokenizer, `check_budget` lets the base model answer a few of the problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from problama_utils import CourseError, tell
from problama_utils.config import LARGEST_SEED, GRPOSettings, Profile, check_number
from problama_utils.tasks.base import Message

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TRAINERS = ("shared-prefix", "stock")
# `<answer>`, one word and `</answer>` are 7 tokens for Llama 3 and 9 for SmolLM2; nothing shorter earns the format.
SHORTEST_ANSWER_TOKENS = 7
BUDGET_SAMPLE = 8  # problems that the base model answers before a training
MOST_LEFT_OUT = 0.1  # share of the problems that may be too long for the window; PIQA has 1 in 100
BUDGET_MARGIN = 16  # tokens that it may go on beyond the budget, to see by how much it overruns


def check_call(profile: Any, *, seed: Any, policy: Any, trainer: Any, **switches: Any) -> tuple[int, str]:
    """Return the seed and the trainer's name of a call of `run_grpo`, after making sure that its arguments are sound.

    Raises:
        CourseError: no profile, a seed that numpy does not take, no such trainer, no pair of model and tokenizer, a
            model without an adapter to train, a switch that is neither True nor False.
    """
    if not isinstance(profile, Profile):
        raise CourseError(f"A training takes a profile, not {type(profile).__name__}: use get_profile('cpu').")
    seed = check_number("seed", seed, 0, LARGEST_SEED, 3407)
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise CourseError(f"{name} = {value!r}, but it must be True or False: leave it out for True.")
    if trainer == "":
        trainer = "shared-prefix" if profile.backend == "transformers" else "stock"
    check_trainer(trainer)
    if policy is not None:
        model = policy[0] if isinstance(policy, tuple | list) and len(policy) == 2 else None
        if model is None or not callable(getattr(policy[1], "apply_chat_template", None)):
            raise CourseError("policy must be the pair (model, tokenizer): pass policy=(model, tokenizer), or leave it "
                              "out to load one.")
        if not getattr(model, "peft_config", None):
            raise CourseError("The model in policy has no adapter that could be trained: attach one with "
                              "attach_lora(model, profile), or leave policy out.")
        from problama_utils.engine.layers import first_broken_weight

        if name := first_broken_weight(model, trained=True):
            raise CourseError(f"The policy's weight {name} holds values that are no finite numbers, so no training can "
                              "repair it: load the model again and attach a fresh adapter.")
    return seed, trainer


def check_trainer(name: Any) -> None:
    """Raise `CourseError` where there is no trainer of that name."""
    if name not in TRAINERS:
        raise CourseError(f"There is no trainer {name!r}. Choose one of: {', '.join(TRAINERS)}.")


def check_settings(
    task: str, settings: GRPOSettings, profile: Profile, chats: Sequence[Sequence[Message]], *, tags: bool = True
) -> None:
    """Refuse what cannot work with any tokenizer.

    Args:
        task: for the messages.
        profile: its `max_seq_length` bounds prompt + completion.
        chats: the prompts to be trained on.
        tags: the answer is paid inside tags; a task with rewards of its own may pay anything.

    Raises:
        CourseError: fewer problems than prompts per step, a budget in which no tagged answer fits, or more
            than a tenth of prompts whose words alone (a token never spans two) leave no room for the completion.
    """
    if len(chats) < settings.prompts_per_step:
        cut = 0 < settings.dataset_size <= len(chats)  # else there are no more of them
        raise CourseError(
            f"{task}: there are {len(chats)} problems, but a step takes prompts_per_step = {settings.prompts_per_step} "
            f"different ones: {'raise dataset_size or ' if cut else ''}lower prompts_per_step to {len(chats)}"
            f"{' (with per_device_batch_size = 0)' if settings.per_device_batch_size else ''}."
        )
    if tags and settings.max_completion_length < SHORTEST_ANSWER_TOKENS:
        raise CourseError(
            f"{task}: max_completion_length = {settings.max_completion_length}, but <answer>, one word and </answer> "
            f"take at least {SHORTEST_ANSWER_TOKENS} tokens: every completion would be cut. Use 16."
        )
    counts = [sum(len(turn["content"].split()) for turn in chat) for chat in chats]
    if _too_many(sum(count + settings.max_completion_length > profile.max_seq_length for count in counts), len(counts)):
        words = max(counts)
        raise _beyond_window(f"{task}: the longest prompt has {words} words, so at least as many tokens,", 2 * words,
                             settings, profile.max_seq_length)


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
        settings: its `max_completion_length` must fit behind each prompt.
        limit: `max_seq_length` of the profile, in tokens.
        what: what the problems are called in the line on stderr.
    """
    lengths = prompt_lengths(dataset, tokenizer)
    kept = [place for place, length in enumerate(lengths) if length + settings.max_completion_length <= limit]
    left = len(lengths) - len(kept)
    if not left or _too_many(left, len(lengths)) or len(kept) < settings.prompts_per_step:
        return dataset
    tell(f"{left} of {len(lengths):,} {what} problems are left out: with their completion they exceed max_seq_length = "
        f"{limit}.")
    return dataset.select(kept)


def check_lengths(lengths: Sequence[int], settings: GRPOSettings, limit: int) -> int:
    """Return the longest prompt in tokens, after making sure that prompt and completion fit the model's window.

    Raises:
        CourseError: prompt + completion exceed `limit` tokens.
    """
    longest = max(lengths)
    if longest + settings.max_completion_length > limit:
        raise _beyond_window(f"The longest prompt has {longest} tokens", longest, settings, limit)
    return longest


def _beyond_window(what: str, prompt: int, settings: GRPOSettings, limit: int) -> CourseError:
    """Return the error for prompts of that many tokens, with a cure that is not refused in its turn."""
    completion, left = settings.max_completion_length, limit - prompt
    lower = f"lower max_completion_length to {left} or " if left >= SHORTEST_ANSWER_TOKENS else ""
    return CourseError(f"{what} and max_completion_length is {completion}, together more than max_seq_length = "
                       f"{limit}: {lower}raise max_seq_length to {prompt + completion}.")


def check_budget(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, settings: GRPOSettings
) -> None:
    """Let the policy answer some of the problems greedily and refuse a budget that most of its answers overrun.

    A completion that is cut cannot close its tags, so it earns nothing, right or wrong.

    Raises:
        CourseError: more than half of the answers reach `max_completion_length`.
    """
    from problama_utils.model.completions import complete

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
            f"nothing. Raise max_completion_length, {'' if settings.few_shot else 'set few_shot=True, '}or pass "
            "strict=False to watch it fail."
        )
