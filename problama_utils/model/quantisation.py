"""Four bits per weight: the NF4 code of QLoRA from the normal distribution up, and uniform int4 to compare it with.

A weight matrix is cut into blocks of 64 numbers. Each block keeps its largest magnitude (absmax) and, per number, the
index of the nearest of 16 code values times absmax. NF4 puts the 16 values at quantiles of a normal distribution,
uniform int4 at equal distances. Everything is computed as bitsandbytes' CPU kernels do it, bit for bit, in plain torch.

Source: QLoRA (arXiv:2305.14314), sections 2 and 3; 8-bit dynamic code: arXiv:1511.04561 and arXiv:2110.02861.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

BLOCK = 64  # weights that share one absmax
SECOND_BLOCK = 256  # absmax values that share one second scale
TABLE_STEPS = 65536  # resolution of the CPU kernel's look-up table for 8-bit codes
NF4_TAIL = 0.9677083  # 1 − (1/30 + 1/32) / 2: how far out the outermost quantile lies (bitsandbytes' rounding of it)


def normal_float_code(tail: float = NF4_TAIL) -> Tensor:
    """Return the 16 values of NF4, ascending from −1 to 1, with an exact 0.

    Eight quantiles of N(0, 1) above zero and seven below, each half spaced evenly in probability between `tail` (above
    one half, below 1) and one half, then zero; all divided by the largest, so that they span [−1, 1]
    (arXiv:2305.14314, section 3, eq. 4). fp32.

    >>> [round(value, 4) for value in normal_float_code()[6:10].tolist()]
    [-0.0911, 0.0, 0.0796, 0.1609]
    """
    if not 0.5 < tail < 1.0:
        raise ValueError(f"tail = {tail!r} must lie between 0.5 and 1, such as {NF4_TAIL}.")
    above = torch.special.ndtri(torch.linspace(tail, 0.5, 9)[:-1].double())  # quantile function of N(0, 1)
    below = -torch.special.ndtri(torch.linspace(tail, 0.5, 8)[:-1].double())
    values = torch.cat([below, torch.zeros(1), above]).float().sort().values
    return values / values.max()


def uniform_code(levels: int = 15) -> Tensor:
    """Return `levels` values at equal distances from −1 to 1: 15 are the integers −7 … 7 of symmetric int4, over 7.

    An even number, such as 16, uses every 4-bit pattern but has no exact 0.
    """
    if levels < 2:
        raise ValueError(f"levels = {levels!r} must be at least 2.")
    return (2.0 * torch.arange(levels) - (levels - 1)) / (levels - 1)  # linspace would miss the exact 0


def dynamic_code() -> Tensor:
    """Return the 256 values of the 8-bit dynamic code that bitsandbytes stores absmax values in, ascending.

    Seven decades with 1, 2, 4, … 64 values each, on both sides of 0: relative precision where numbers are small.
    """
    positive = []
    for exponent in range(7):
        edges = torch.linspace(0.1, 1.0, 2**exponent + 1)
        positive.append(10.0 ** (exponent - 6) * ((edges[:-1] + edges[1:]) / 2.0))
    values = torch.cat(positive)
    return torch.cat([-values, torch.tensor([0.0, 1.0]), values]).sort().values


@dataclass(frozen=True)
class Scales:
    """Absmax values, one per block: plain (`second_scales` is None) or themselves quantised to 8 bits."""

    values: Tensor  # fp32 absmax, or uint8 indices into dynamic_code(); shape (blocks,)
    second_scales: Tensor | None = None  # fp32, one per SECOND_BLOCK absmax values
    offset: Tensor | None = None  # fp32 scalar, the mean absmax that was taken off first

    def absmax(self) -> Tensor:
        """Return the absmax values in fp32, shape (blocks,)."""
        if self.second_scales is None:
            return self.values
        steps = _blocks(dynamic_code()[self.values.long()], SECOND_BLOCK) * self.second_scales[:, None]
        return steps.reshape(-1)[: self.values.numel()] + self.offset


@dataclass(frozen=True)
class Quantised:
    """A tensor at four bits per number."""

    packed: Tensor  # uint8, two indices a byte: the first in the high half
    scales: Scales
    code: Tensor  # fp32, at most 16 ascending values in [−1, 1]
    shape: torch.Size
    dtype: torch.dtype
    block_size: int = BLOCK

    def stored_bits(self) -> float:
        """Return the bits kept per number, indices and scales together."""
        tensors = [self.packed, self.scales.values, self.scales.second_scales, self.scales.offset]
        held = sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
        return 8.0 * held / self.shape.numel()


def quantise(weights: Tensor, code: Tensor, *, block_size: int = BLOCK, double: bool = False) -> Quantised:
    """Round each number to the nearest code value of its block.

    Args:
        weights: any shape, finite; the last block may be short.
        code: ascending values in [−1, 1], at most 16 (`normal_float_code`, `uniform_code`).
        block_size: numbers that share one absmax.
        double: quantise the absmax values to 8 bits as well (double quantisation).

    Raises:
        ValueError: the code has more than 16 values, the block size is not positive, or a weight is not finite.
    """
    if code.numel() > 16 or block_size < 1:
        raise ValueError(f"{code.numel()} code values in blocks of {block_size}: four bits hold at most 16 values, "
                         "and a block at least one number.")
    if not torch.isfinite(weights).all():
        raise ValueError("The weights hold NaN or infinity: a block's scale would swallow its other numbers.")
    blocks = _blocks(weights.detach().float().reshape(-1), block_size)
    absmax = blocks.abs().amax(dim=1)
    scaled = (blocks * (1.0 / absmax.clamp(min=1e-38))[:, None]).clamp(-1.0, 1.0)  # an all-zero block stays zero
    scales = double_quantise(absmax) if double else Scales(absmax)
    indices = nearest(scaled, code).reshape(-1)[: weights.numel()]
    return Quantised(pack(indices), scales, code, weights.shape, weights.dtype, block_size)


def dequantise(quantised: Quantised) -> Tensor:
    """Return the tensor that a forward pass computes with: code value times absmax, in the original shape and dtype."""
    numbers = quantised.shape.numel()
    values = _blocks(quantised.code[unpack(quantised.packed, numbers).long()], quantised.block_size)
    restored = (values * quantised.scales.absmax()[:, None]).reshape(-1)[:numbers]
    return restored.reshape(quantised.shape).to(quantised.dtype)


def double_quantise(absmax: Tensor) -> Scales:
    """Quantise absmax values to 8 bits: take off their mean, then round to the dynamic code in blocks of 256.

    As bitsandbytes' CPU kernel, it rounds the scaled value to one of 65,536 steps first; the GPU kernel searches
    exactly, and differs for about one absmax in a thousand.
    """
    offset = absmax.mean()
    blocks = _blocks(absmax - offset, SECOND_BLOCK)
    second = blocks.abs().amax(dim=1)
    scaled = blocks * (1.0 / second.clamp(min=1e-38))[:, None]
    steps = ((scaled + 1.0) * 0.5 * (TABLE_STEPS - 1) + 0.5).floor()
    indices = nearest(-1.0 + 2.0 * steps / (TABLE_STEPS - 1), dynamic_code())
    return Scales(indices.reshape(-1)[: absmax.numel()], second, offset)


def nearest(values: Tensor, code: Tensor) -> Tensor:
    """Return the index of the nearest code value for each number, as uint8: the borders are the code's midpoints."""
    return torch.bucketize(values, (code[1:] + code[:-1]) / 2).to(torch.uint8)


def pack(indices: Tensor) -> Tensor:
    """Put two 4-bit indices into each byte, the first in the high half; an odd one out gets a zero beside it.

    >>> pack(torch.tensor([1, 15, 2], dtype=torch.uint8)).tolist()
    [31, 32]
    """
    pairs = _blocks(indices, 2)
    return (pairs[:, 0] << 4) | pairs[:, 1]


def unpack(packed: Tensor, numbers: int) -> Tensor:
    """Return the first `numbers` 4-bit indices of `packed`, as uint8."""
    return torch.stack([packed >> 4, packed & 15], dim=1).reshape(-1)[:numbers]


def bits_per_weight(block_size: int = BLOCK, second_block: int = 0) -> float:
    """Return the storage per weight in bits: 4 for the index, plus the weight's share of the scales.

    `second_block` absmax values share a second scale; 0 keeps each absmax in fp32 (no double quantisation).

    >>> bits_per_weight(64), bits_per_weight(64, 256)
    (4.5, 4.126953125)
    """
    if second_block == 0:
        return 4 + 32 / block_size
    return 4 + 8 / block_size + 32 / (block_size * second_block)


def relative_error(approximation: Tensor, exact: Tensor) -> float:
    """Return the root mean square error over the root mean square of the exact numbers (0 = equal, 1 = all zeros)."""
    exact = exact.float()
    return ((approximation.float() - exact).norm() / exact.norm()).item()


def keep_differentiable(model: nn.Module) -> int:
    """Tell bitsandbytes' 4-bit layers never to repack themselves for CPU inference; return how many were told.

    On a CPU with AVX512-BF16, the first evaluation turns each 4-bit weight, for good, into a layout whose product has
    no backward pass: adapters below then train on gradients that are silently wrong. With the switch off, evaluation
    and training compute the same numbers by the same path. Nothing changes on a GPU.
    """
    layers = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return len(layers)


def _blocks(flat: Tensor, size: int) -> Tensor:
    """Return a flat tensor as rows of `size`, the last one filled up with zeros."""
    return nn.functional.pad(flat, (0, -flat.numel() % size)).reshape(-1, size)
