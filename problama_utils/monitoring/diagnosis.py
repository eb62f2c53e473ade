"""Why is my reward flat? A table of rules, each from the figures of a log to a cause, its evidence and its cure.

Works on the table alone (`monitoring.diagnose` also takes a run folder). The rules are in the order of causes: a
policy that broke writes endlessly, cut completions have no closed tags, groups without tags have no variance. So the
first finding is the one to fix; those after it often go with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING, Any

from problama_utils import CourseError
from problama_utils.config import check_number
from problama_utils.monitoring.evidence import (
    ALL_EQUAL,
    BRIEF,
    CLIPPED,
    FORM,
    GRADIENT,
    KL,
    LENGTH,
    LONGEST,
    LONGEST_ENDED,
    LOSS,
    RATE,
    RIGHT,
    STANDARD_ERRORS,
    TOTAL,
    Evidence,
    numbers_only,
)  # fmt: skip
from problama_utils.rewards.slides import CORRECT, FORMAT

if TYPE_CHECKING:
    import pandas as pd

LEVEL_STEPS = 5  # a level (all cut, never a tag) is plain after some 100 completions
TREND_STEPS = 10  # thirds of fewer than 10 steps are 2 values each: their standard error is itself a guess
MOSTLY_CUT = 0.5  # share of completions; above it the typical completion never reached its closing tag
ALL_CUT = 0.95  # almost none ended by itself, so the log cannot tell whether the policy knows the format
NO_FORM = 0.01  # share with tags; at 1 in 100 a group of 8 holds one in 13 batches, too rare to learn from
MOSTLY_EQUAL = 0.8  # share of groups; four in five steps' worth of sampling then gives no gradient
NEARLY_ALL_RIGHT = 0.9  # share of answers; what is left to gain then drowns in the noise of the steps
TAGGED_ANSWER = 16  # tokens; `<answer>` and `</answer>` take about 7, an answer a few
GOOD_RATE = 3e-4  # the riddles' rate: the highest with which our small model learned without breaking
KL_STILL = 1e-3  # nats per token; our healthy runs pass it within 3 steps at full rate
KL_BROKEN = 2.0  # nats per token; our healthy runs stay below 0.5 apart from single steps
GRADIENT_EXPLODED = 100.0  # norm before clipping to 1; our healthy runs stay below 1 at every step
HEAVY_BETA = 1.0  # advantages have size 1 and the best log-ratio is advantage / beta: from here on below 1
SMALLEST_REACH = 1e-4  # sum of rates; Adam moves a weight by about the rate a step. Profiles reach 1e-3 to 2e-2
TRADED = -0.5  # correlation over the steps; two standard errors from 0 at 17 steps
LENGTH_FACTOR = 1.5  # times; a length that changes by half has become another way of answering


@dataclass(frozen=True)
class Finding:
    """One cause, with the figures that show it and the change that fixes it."""

    cause: str
    evidence: str
    cure: str


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` says. `verdict` is the first cause, or "healthy", "flat", "falling" or "too short to tell"."""

    verdict: str
    summary: str
    findings: tuple[Finding, ...] = ()
    skipped: tuple[str, ...] = ()  # "cause: what the log lacks"

    def __str__(self) -> str:
        lines = [f"{self.verdict}: {self.summary}"]
        for place, finding in enumerate(self.findings):
            lines += [f"{'Cause' if place == 0 else 'Also'}: {finding.cause}", f"  seen: {finding.evidence}",
                      f"  cure: {finding.cure}"]
        return "\n".join(lines + [f"Not checked: {reason}" for reason in self.skipped])


Found = tuple[str, str] | None  # evidence, cure


def _rate_too_high(run: Evidence) -> Found:
    for metric in (LOSS, GRADIENT, KL):
        step = run.unmendable(metric)
        if step is not None:
            return f"{metric} is not a finite number from step {step} on", _slower(run)
    if len(run.values(TOTAL)) < LEVEL_STEPS or run.learns:
        return None
    reward = run.change(TOTAL)
    if run.late(KL) >= KL_BROKEN:
        return (f"KL to the reference policy {run.late(KL):.3g} nats per token (a healthy run stays below "
                f"{KL_BROKEN:g}) while the reward went {reward}", _slower(run))
    steepest = run.values(GRADIENT).max()
    if steepest >= GRADIENT_EXPLODED and not run.beta >= HEAVY_BETA:  # a heavy beta makes steep gradients at any rate
        return f"gradient norm up to {steepest:.3g} (a healthy run stays below 1), reward {reward}", _slower(run)
    return None


def _slower(run: Evidence) -> str:
    rate = run.values(RATE)
    if not len(rate):
        return "divide the learning rate by ten and start afresh: these weights do not recover"
    return (f"learning_rate {rate.max():.3g} → {min(rate.max() / 10, GOOD_RATE):.3g}, and start afresh: these weights "
            "do not recover")


def _truncated(run: Evidence) -> Found:
    cut = run.change(CLIPPED)
    if min(cut.first, cut.last) < MOSTLY_CUT or run.learns:
        return None
    budget = run.setting("max_completion_length", run.values(LONGEST).max())
    enough = max(2 * budget, TAGGED_ANSWER, 1.25 * run.values(LONGEST_ENDED).max())
    return (f"{cut.first:.0%} of completions in the first steps and {cut.last:.0%} in the last were cut at {budget:g} "
            "tokens, before they could close their tags",
            f"max_completion_length {budget:g} → {enough:.0f}, or prompts that ask for the answer alone")


def _format_unreachable(run: Evidence) -> Found:
    share = run.values(FORM).mean() / FORMAT
    if share >= NO_FORM or run.values(CLIPPED).mean() >= ALL_CUT:
        return None
    cure = ("set few_shot=True: two worked examples in the prompt show the form"
            if not run.settings.get("few_shot") else
            "the two examples are there already: start from a policy that has the form (a short supervised cold "
            "start), or pay a part of the format reward for an opening tag alone")
    return (f"{share:.1%} of completions over {len(run.values(FORM))} steps had answer tags, so no group could prefer "
            "one that has them", cure)


def _already_right(run: Evidence) -> Found:
    right, equal = run.change(RIGHT), run.values(ALL_EQUAL).mean()
    if min(right.first, right.last) < NEARLY_ALL_RIGHT * CORRECT:
        return None
    return (f"{right.first / CORRECT:.0%} of answers were right from the start and {equal:.0%} of groups had equal "
            "rewards", "harder problems (difficulty 2 or 3), or stop: there is nothing left to learn here")


def _no_variance(run: Evidence) -> Found:
    equal, reward = run.change(ALL_EQUAL), run.change(TOTAL)
    if min(run.values(ALL_EQUAL).mean(), equal.last) < MOSTLY_EQUAL or run.learns:
        return None
    if run.change(RIGHT).last >= NEARLY_ALL_RIGHT * CORRECT:
        return None
    heat, size = run.setting("temperature", 0.7), run.setting("num_generations", 8)
    return (f"in {run.values(ALL_EQUAL).mean():.0%} of groups all rewards were equal, so every advantage was 0; the "
            f"reward stayed low ({reward})", f"temperature {heat:g} → {heat + 0.3:.1f} and num_generations {size:g} → "
            f"{2 * size:g}, or easier problems (difficulty 1), so that a group holds both right and wrong")


def _rate_too_low(run: Evidence) -> Found:
    kl, rate = run.late(KL), run.values(RATE).max()
    # a heavy beta keeps the KL small at any rate, and a good rate is not what holds a policy still
    still = kl < KL_STILL and rate < GOOD_RATE and not run.beta >= HEAVY_BETA
    if run.learns or not (still or run.reach < SMALLEST_REACH) or run.values(ALL_EQUAL).mean() >= MOSTLY_EQUAL:
        return None
    better = min(max(10 * rate, GOOD_RATE / 3), GOOD_RATE)
    moved = f"KL to the reference policy is {kl:.2g} nats per token" if kl == kl else "no KL was logged"
    return (f"groups differed, yet the policy did not move: {moved}, and learning rates up to {rate:.3g} add up to "
            f"{run.reach:.2g}; the reward went {run.change(TOTAL)}",
            f"learning_rate {rate:.3g} → {better:.0e}, with a warm-up that ends within the run")


def _kl_holds(run: Evidence) -> Found:
    if not run.beta >= HEAVY_BETA or run.learns or run.reach < SMALLEST_REACH:
        return None
    return (f"beta = {run.beta:.3g} lets no completion of advantage 1 become more than exp(1 / beta) = "
            f"{exp(1 / run.beta):.3g} times as probable; KL stayed at {run.late(KL):.2g} and "
            f"the reward went {run.change(TOTAL)}", f"beta {run.beta:.3g} → 0.04")


def _length_hack(run: Evidence) -> Found:
    right, brief, length = run.change(RIGHT), run.change(BRIEF), run.change(LENGTH)
    ratio = length.last / length.first if length.first > 0 else float("nan")
    drifted = ratio >= LENGTH_FACTOR or ratio <= 1 / LENGTH_FACTOR
    traded = run.correlation(RIGHT, BRIEF)  # a hack may be over within a few steps, too soon for the thirds
    if not right.fallen or not (brief.risen or drifted or traded <= TRADED):
        return None
    return (f"correct answer fell {right} while length went {length} tokens and short response {brief} (correlation of "
            f"the two rewards over the steps {traded:.2f})",
            "pay for brevity only where the answer is right, or lower its weight until a right long answer earns more "
            f"than a wrong short one ({CORRECT:g} against 0.5 on the slides)")


def _form_only(run: Evidence) -> Found:
    right, form = run.change(RIGHT), run.change(FORM)
    share = run.thirds(RIGHT)[1] / CORRECT
    above = share.mean() - STANDARD_ERRORS * share.sem()
    at_chance = run.chance is not None and not above > run.chance
    if not (run.learns or form.risen) or not (at_chance or (form.risen and not right.risen)):
        return None
    guess = f"; guessing gives {run.chance:.0%}" if run.chance is not None else ""
    return (f"soft format went {form} and the total {run.change(TOTAL)}, but {share.mean():.0%} ± "
            f"{STANDARD_ERRORS * share.sem():.0%} of answers were right at the end{guess}",
            "the form is learned, the answers are not: easier problems that the policy sometimes gets right, several "
            "passes over fewer of them, or a stronger base model")


@dataclass(frozen=True)
class Rule:
    """One row of the table: what to look for, which metrics it takes and how many steps of each."""

    cause: str
    find: Callable[[Evidence], Found]
    needs: tuple[str, ...]
    steps: int


RULES = (  # root causes first
    Rule("learning rate too high", _rate_too_high, (LOSS,), 0),
    Rule("completions truncated", _truncated, (CLIPPED, TOTAL), LEVEL_STEPS),
    Rule("format unreachable", _format_unreachable, (FORM,), LEVEL_STEPS),
    Rule("everything already right", _already_right, (RIGHT, ALL_EQUAL), LEVEL_STEPS),
    Rule("groups without variance", _no_variance, (ALL_EQUAL, TOTAL), LEVEL_STEPS),
    Rule("learning rate too low", _rate_too_low, (RATE, TOTAL), TREND_STEPS),
    Rule("KL holding on", _kl_holds, (KL, TOTAL), TREND_STEPS),
    Rule("reward hacked by length", _length_hack, (RIGHT, LENGTH), TREND_STEPS),
    Rule("only the form was learned", _form_only, (RIGHT, FORM, TOTAL), TREND_STEPS),
)  # fmt: skip


def find_causes(log: pd.DataFrame, settings: Any = None, *, chance: float | None = None) -> Diagnosis:
    """Name the cause of a flat or falling reward, as `monitoring.diagnose` does, from the table alone.

    Args:
        log: one row per step, columns under TRL's names; gaps and unknown columns are fine.
        settings: a `GRPOSettings`, or the same as a mapping; None = beta is read off the log.
        chance: share of answers that guessing gets right (0.5 for two options); None = no such floor.

    Raises:
        CourseError: `settings` or `chance` are no such thing; the contents of a log never raise.
    """
    import numpy as np

    plain = settings if isinstance(settings, Mapping) else getattr(settings, "__dict__", None)
    if settings is not None and plain is None:
        raise CourseError(f"The settings of a run are a GRPOSettings or a mapping, not {type(settings).__name__}; "
                          "leave them out to diagnose the log alone.")
    if chance is not None:
        check_number("chance", chance, 0, 1, "the share of right guesses, 0.5 for two options", whole=False)
    run = Evidence(numbers_only(log), plain or {}, chance)
    findings, skipped = [], []
    with np.errstate(all="ignore"):
        for rule in RULES:
            there = [len(run.values(name)) if name in run.log else -1 for name in rule.needs]
            missing = [name for name, steps in zip(rule.needs, there, strict=True) if steps < min(rule.steps, 1)]
            if missing:
                skipped.append(f"{rule.cause} (the log has no {', '.join(missing)})")
            elif min(there) >= rule.steps:
                found = rule.find(run)
                findings += [Finding(rule.cause, *found)] if found else []
        verdict, summary = _verdict(run, findings)
    return Diagnosis(verdict, summary, tuple(findings), tuple(skipped))


def _verdict(run: Evidence, findings: list[Finding]) -> tuple[str, str]:
    steps, reward = len(run.values(TOTAL)), run.change(TOTAL)
    told = f"total reward {reward} (thirds of {steps} steps, ± {STANDARD_ERRORS * reward.error:.2g})"
    if findings:
        return findings[0].cause, told
    if not steps:
        return "too short to tell", "the log has no reward of any step: a GRPO log has a column 'reward'."
    if steps < TREND_STEPS:
        return "too short to tell", f"{steps} steps with a reward; a trend needs {TREND_STEPS}."
    if reward.risen:
        return "healthy", f"{told} on the problems trained on, and no known cause of trouble."
    if reward.fallen:
        return "falling", f"{told}; none of the known causes: read some completions, then halve the learning rate."
    if run.chance is not None and len(run.values(RIGHT)):
        share = run.thirds(RIGHT)[1].mean() / CORRECT
        told += f", {share:.0%} of answers right at the end where guessing gives {run.chance:.0%}"
    return "flat", (f"{told}; none of the known causes: the policy moves and its groups differ. Read some completions; "
                    "run longer, with easier problems or more completions per prompt.")
