"""Checks for the four exercises of notebook 01. torch is imported only when a check runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from problama_utils.exercises.checking import Case, CheckResult, check_function, difference, run_apart


def check_group_advantages(answer: Callable | None) -> CheckResult:
    """Exercise 1: `answer(rewards, unbiased)` → group-relative advantages of one group, a tensor of shape (G,)."""
    import torch

    def case(name: str, rewards: list[float], expected: list[float], hint: str, unbiased: bool = True) -> Case:
        return Case(name, (torch.tensor(rewards), unbiased), expected, hint, tolerance=1e-3)

    half = 3**0.5 / 2
    return check_function("group advantages", answer, [
        case("rewards 1, 1, 0, 0, unbiased", [1.0, 1.0, 0.0, 0.0], [half, half, -half, -half],
             "subtract the mean, divide by the deviation with G − 1 in it"),
        case("rewards 1, 1, 0, 0, population", [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, -1.0, -1.0],
             "with unbiased=False the squared deviations are divided by G", unbiased=False),
        case("only one right: 0, 0, 0, 1", [0.0, 0.0, 0.0, 1.0], [-0.5, -0.5, -0.5, 1.5],
             "the rarer the success, the larger its advantage"),
        case("rewards 2, 0 (the sum must be 0)", [2.0, 0.0], [2**-0.5, -(2**-0.5)], "mean 1, unbiased deviation √2"),
        case("an equal group", [1.0] * 4, [0.0] * 4, "0 divided by 0 is NaN: this group must give 0"),
        case("an equal group of seven times 0.3", [0.3] * 7, [0.0] * 7,
             "the mean is off by a rounding error, and divided by a tiny deviation that becomes 0.93; it must be 0"),
    ])


def check_clip_objective(answer: Callable | None) -> CheckResult:
    """Exercise 2: `answer(ratio, advantage, low, high)` → the objective clipped to 1 − low … 1 + high, elementwise."""
    import torch

    def case(name: str, ratio: float, advantage: float, expected: float, hint: str, high: float = 0.2) -> Case:
        return Case(name, (torch.tensor([ratio]), torch.tensor([advantage]), 0.2, high), [expected], hint)

    grid = torch.tensor([0.5, 1.5, 0.5, 1.5]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    return check_function("clipped objective", answer, [
        case("A > 0, ratio inside", 1.1, 2.0, 2.2, "inside the range it is ratio × A"),
        case("A > 0, ratio too high", 1.5, 2.0, 2.4, "the clip holds it at (1 + high) A"),
        case("A > 0, ratio low", 0.5, 2.0, 1.0, "a good token that became rarer must still be pulled back up"),
        case("A < 0, ratio too low", 0.5, -2.0, -1.6, "the clip holds it at (1 − low) A"),
        case("A < 0, ratio high", 1.5, -2.0, -3.0, "the minimum, for both signs of A: a maximum here is a bug"),
        case("clip higher", 1.5, 1.0, 1.28, "the upper edge is 1 + high, not 1 + low", high=0.28),
        Case("all four at once", (*grid, 0.2, 0.2), [0.5, 1.2, -0.8, -1.5], "work on whole tensors, without if"),
        case("A = 0", 3.0, 0.0, 0.0, "nothing to learn, so 0"),
    ])


def check_gae(answer: Callable | None) -> CheckResult:
    """Exercise 3: `answer(rewards, values, gamma, lam, last_value)` → GAE of one rollout, T numbers."""
    import torch

    rewards, values, one = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.25, 0.75]), torch.ones(1)
    return check_function("generalised advantages", answer, [
        Case("λ = 0", (rewards, values, 1.0, 0.0, 0.0), [-0.25, 0.5, 0.25], "only the TD errors are left"),
        Case("λ = 1", (rewards, values, 1.0, 1.0, 0.0), [0.5, 0.75, 0.25], "the return minus the value"),
        Case("λ = ½", (rewards, values, 1.0, 0.5, 0.0), [0.0625, 0.625, 0.25], "backwards: A_t = δ_t + γλ A_{t+1}"),
        Case("γ = ½, λ = 1", (rewards, values, 0.5, 1.0, 0.0), [-0.25, 0.25, 0.25], "γ is in δ and in the sum"),
        Case("cut off", (torch.zeros(3), values, 1.0, 0.0, 0.5), [-0.25, 0.5, -0.25],
             "after the last token V is last_value, not 0"),
        Case("one token", (one, one / 4, 1.0, 0.95, 0.0), [0.75], "with T = 1 no next value is in the tensor"),
    ])


def check_grpo_loss(answer: Callable | None) -> CheckResult:
    """Exercise 4: `answer(logprobs, old, ref, advantages, mask, beta, epsilon)` → the GRPO loss, with its gradient."""
    import torch

    def call(name: str, hint: str, beta: float = 0.0, drift: float = 0.0, poison: float = -1.0) -> Case:
        generator = torch.Generator().manual_seed(5)
        logprobs, old, ref = (-3 * torch.rand(2, 3, generator=generator) - 0.1 for _ in range(3))
        mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
        old = logprobs + drift * (old - logprobs)
        logprobs = torch.where(mask > 0, logprobs, torch.tensor(poison)).requires_grad_()
        return _loss_case(name, hint, (logprobs, old, ref, torch.tensor([1.0, -1.0]), mask, beta, 0.2))

    return check_function("GRPO loss", answer, [
        call("fresh rollouts, β = 0", "ratio 1: the loss is −mean(A), but the gradient must not vanish"),
        call("several iterations, β = 0", "exp(logprobs − old), clipped; mean over each row of tokens", 0, 1.0),
        call("β = 0.5", "add β (e^u − u − 1) with u = ref − logprobs to the loss", 0.5, 1.0),
        call("large numbers on padding", "padding must not count, nor in the gradient", 0.5, 1.0, poison=-20.0),
    ])


def _loss_case(name: str, hint: str, arguments: tuple) -> Case:
    """A call whose value and gradient are both compared with the package's loss."""
    import torch

    from problama_utils.grpo.losses import grpo_loss

    def compare(value: Any, args: tuple) -> str | None:
        if type(value) is not torch.Tensor:
            return "the loss must be a tensor; compute it from logprobs with torch operations"
        # A backward pass may run a learner's code, so it comes before anything is known here.
        gradients, raised = run_apart(torch.autograd.grad, value, args[0])
        logprobs, old, ref, advantages, mask, beta, epsilon = arguments
        loss = grpo_loss(logprobs, old, advantages, mask, ref_logprobs=ref, beta=beta, epsilon=epsilon)
        wrong = difference(value, loss)
        if wrong:
            return f"the loss is off: {wrong}"
        if raised:
            return (f"the value is right, but the backward pass of your loss stopped with {raised}; compute it from "
                    "logprobs with torch operations")
        wrong = difference(gradients[0], torch.autograd.grad(loss, logprobs)[0])
        return f"the value is right, but its gradient is off: {wrong}" if wrong else None

    return Case(name, arguments, hint=hint, compare=compare)
