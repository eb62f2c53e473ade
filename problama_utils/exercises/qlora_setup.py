"""Checks for the four exercises of notebook 02. torch is imported only when a check runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from problama_utils.exercises.checking import Case, CheckResult, check_function, difference
from problama_utils.model.memory import LLAMA_3_1_8B, SMOLLM2_135M


def check_quantise_block(answer: Callable | None) -> CheckResult:
    """Exercise 1: `answer(values, code)` → the block after a round trip through the code, shape as given."""
    import torch

    from problama_utils.model.quantisation import dequantise, normal_float_code, quantise

    three = torch.tensor([-1.0, 0.0, 1.0])
    nf4 = normal_float_code()
    drawn = 0.02 * torch.randn(64, generator=torch.Generator().manual_seed(3))
    outlier = torch.cat([drawn[:63], torch.tensor([1.0])])
    return check_function("one block through a code", answer, [
        Case("code −1, 0, 1", (torch.tensor([0.5, -2.0, 0.9, 1.1]), three), [0.0, -2.0, 0.0, 2.0],
             "divide by the largest magnitude, take the nearest code value, multiply back"),
        Case("all positive", (torch.tensor([3.0, 1.0, 2.0]), three), [3.0, 0.0, 3.0],
             "absmax is 3; 2/3 is nearer to 1 than to 0"),
        Case("64 numbers through NF4", (drawn, nf4), dequantise(quantise(drawn, nf4)).tolist(),
             "compare every number with every code value: shape (64, 16), argmin over the last"),
        Case("one outlier", (outlier, nf4), dequantise(quantise(outlier, nf4)).tolist(),
             "the outlier sets the scale, and it may round almost all others to 0"),
        Case("a block of zeros", (torch.zeros(4), nf4), [0.0] * 4, "0 divided by 0 is not a number; here it is 0"),
    ])


def check_bits_per_weight(answer: Callable | None) -> CheckResult:
    """Exercise 2: `answer(block_size, second_block)` → bits per weight; second_block = 0 keeps fp32 scales."""
    return check_function("bits per weight", answer, [
        Case("blocks of 64, fp32 scales", (64, 0), 4.5, "64 weights share 32 bits"),
        Case("blocks of 32, fp32 scales", (32, 0), 5.0, "the index costs 4 bits for any block size"),
        Case("QLoRA: 64 and 256", (64, 256), 4 + 8 / 64 + 32 / (64 * 256),
             "each scale shrinks to 8 bits, and 256 of them share one fp32 number", tolerance=1e-6),
        Case("blocks of 128 and 64", (128, 64), 4 + 8 / 128 + 32 / (128 * 64), "use both arguments",
             tolerance=1e-6),
    ])


def check_merge(answer: Callable | None) -> CheckResult:
    """Exercise 3: `answer(weight, a, b, alpha)` → the merged matrix; a is r × d_in, b is d_out × r."""
    import torch

    generator = torch.Generator().manual_seed(11)
    weight, a, b = (torch.randn(shape, generator=generator) for shape in ((3, 5), (2, 5), (3, 2)))
    inputs = torch.randn(4, 5, generator=generator)

    def same_function(merged: Any, args: tuple) -> str | None:
        if type(merged) is not torch.Tensor or merged.shape != weight.shape:
            return f"the merged matrix must be a tensor of the shape {tuple(weight.shape)} of the weight it replaces"
        wanted = inputs @ weight.T + 6.0 / 2 * (inputs @ a.T) @ b.T
        wrong = difference(inputs @ merged.T, wanted, 1e-3)
        return f"merged and unmerged give different outputs for the same inputs: {wrong}" if wrong else None

    one = torch.tensor([[1.0]])
    return check_function("merging", answer, [
        Case("1 × 1, α = r", (one, 2 * one, 3 * one, 1.0), [[7.0]], "1 + 3 · 2"),
        Case("1 × 1, α = 4", (one, 2 * one, 3 * one, 4.0), [[25.0]], "the product is scaled by α / r"),
        Case("B = 0", (weight, a, torch.zeros_like(b), 6.0), weight.tolist(), "a fresh adapter changes nothing"),
        Case("3 × 5, r = 2, α = 6", (weight, a, b, 6.0), hint="r is the number of rows of A, here 2, so α / r = 3",
             compare=same_function),
    ])


def check_largest_rank(answer: Callable | None) -> CheckResult:
    """Exercise 4: `answer(shapes, base_bytes, memory_bytes)` → the largest LoRA rank that fits, 0 for none."""
    def shapes_of(architecture: Any) -> list[tuple[int, int]]:
        return list(architecture.shapes().values()) * architecture.num_hidden_layers

    llama, small = shapes_of(LLAMA_3_1_8B), shapes_of(SMOLLM2_135M)
    return check_function("the largest rank", answer, [
        Case("one 10 × 6 matrix, 256 bytes a rank", ([(10, 6)], 0, 1000), 3, "16 · r · (10 + 6) ≤ 1000"),
        Case("it just fits", ([(10, 6)], 232, 1000), 3, "768 + 232 is exactly 1000: that still fits"),
        Case("no room at all", ([(10, 6)], 900, 1000), 0, "not even rank 1: answer 0, not a negative number"),
        Case("the base alone is too large", ([(10, 6)], 2000, 1000), 0, "never below 0"),
        Case("Llama-3.1-8B in NF4, 12 GB", (llama, 5_702_295_552, 12_000_000_000), 150,
             "all 224 matrices count: sum of (inputs + outputs), times 16 bytes per rank"),
        Case("the embedded model, 300 MB", (small, 112_000_000, 300_000_000), 38, "whole ranks only: round down"),
    ])
