"""A pretend CUDA card, so that unsloth's own GPU classes run on a CPU: import this before anything else of the lane.

Real are unsloth's loading, its patched Llama, its LoRA, its generated GRPO trainer and 8-bit Adam. Pretended are the
questions put to `torch.cuda`, and the two Triton kernels of the forward pass (norm and rotation), which stand here in
plain torch: Triton's interpreter would take minutes for them.

What a card would do otherwise and nothing here shows: memory, speed, fp16, 4-bit kernels, vLLM.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

os.environ.update(
    TRITON_INTERPRET="1",
    UNSLOTH_ALLOW_CPU="1",  # its import accepts that there is no driver, and still takes the CUDA branches
    UNSLOTH_COMPILE_DISABLE="1",
    TORCHDYNAMO_DISABLE="1",
    UNSLOTH_DISABLE_STATISTICS="1",
    UNSLOTH_DECODE_CUDA_GRAPHS="0",
    UNSLOTH_GRPO_PREFIX_GROUPER="0",  # flash-attention kernels
    UNSLOTH_GRPO_SEQ_PACKING="0",
    UNSLOTH_BNB_TRITON="0",  # 4 bits in fp32 then go through bitsandbytes, which has CPU kernels
)

import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402

GIB = 1024**3
CARD = SimpleNamespace(name="Pretend T4", major=8, minor=0, total_memory=16 * GIB, multi_processor_count=40,
                       shared_memory_per_block_optin=65_536)


class _Device(contextlib.nullcontext):
    def __init__(self, *arguments: Any):
        super().__init__()
        self.idx = 0


def insert() -> None:
    """Answer torch.cuda's questions as one card would; `torch.cuda.is_available()` stays False, tensors stay here."""
    answers = {
        "device_count": 1, "current_device": 0, "get_device_capability": (CARD.major, CARD.minor),
        "get_device_properties": CARD, "get_device_name": CARD.name, "mem_get_info": (15 * GIB, 16 * GIB),
        "memory_allocated": 0, "memory_reserved": 0, "max_memory_allocated": 0, "max_memory_reserved": 0,
        "synchronize": None, "empty_cache": None, "reset_peak_memory_stats": None, "is_bf16_supported": True,
        "current_stream": SimpleNamespace(cuda_stream=0), "is_current_stream_capturing": False,
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, _answer=answer, **__: _answer)
    torch.cuda.device = _Device
    torch._C._cuda_getCurrentRawStream = lambda _: 0


class AfterImport(importlib.abc.MetaPathFinder):
    """Call `then` once a package has been imported: where a notebook decides when that is, and in which order."""

    def __init__(self, package: str, then: Callable[[], None]):
        self.package, self.then = package, then

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name == self.package else None
        if spec is not None:
            run = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (run(module), self.then())
        return spec


def rms_norm(norm: torch.nn.Module, hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """unsloth's `fast_rms_layernorm` without its kernel."""
    epsilon = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    return F.rms_norm(hidden, norm.weight.shape, norm.weight, epsilon)


def rotate(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: Any = None):
    """unsloth's `fast_rope_embedding` without its kernel."""
    length, dim = q.shape[2], q.shape[3]
    if positions is None:
        cos, sin = cos[None, None, :length], sin[None, None, :length]
    else:
        positions = positions.long().view(-1, length)
        cos, sin = cos[positions][:, None], sin[positions][:, None]
    if cos.shape[-1] != dim:
        cos, sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)

    def turned(x: torch.Tensor) -> torch.Tensor:
        half = dim // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

    return turned(q), turned(k)


def bring_to_the_cpu() -> None:
    """Point what unsloth has imported at the CPU, patch TRL with unsloth's GRPO trainer, load in fp32."""
    import unsloth

    llama, rl = (importlib.import_module(f"unsloth.models.{name}") for name in ("llama", "rl"))
    os.environ["UNSLOTH_ALLOW_CPU"] = "0"  # with it unsloth would leave TRL's trainer as it is
    _settle(module for name, module in sys.modules.items() if name.partition(".")[0] in ("unsloth", "unsloth_zoo"))
    llama.get_current_device = lambda: "cpu"
    llama.fast_rms_layernorm, llama.fast_rope_embedding = rms_norm, rotate
    llama._PerDeviceRopeCache._ensure_rope_cache = _ensure_rope_cache
    llama._PerDeviceRopeCache._build_rope_cache = _build_rope_cache

    rl.patch_trl_disable_gradient_checkpointing()
    rl._patch_trl_rl_trainers("grpo_trainer")  # the only one that the course uses, in a quarter of the time
    rl.patch_trl_vllm_generation()
    _settle([sys.modules["UnslothGRPOTrainer"]])
    importlib.import_module("unsloth.models.loader").ALLOW_BITSANDBYTES = True  # False without CUDA's own kernels

    fast = unsloth.FastLanguageModel
    load, attach = fast.from_pretrained, fast.get_peft_model
    here = dict(device_map={"": "cpu"}, dtype=torch.float32, use_gradient_checkpointing=False,
                use_exact_model_name=True)  # fmt: skip
    fast.from_pretrained = staticmethod(lambda **given: load(**{**given, **here}))
    # "unsloth" offloads activations through CUDA streams
    fast.get_peft_model = staticmethod(lambda model, **given: attach(
        model, **{**given, "use_gradient_checkpointing": bool(given["use_gradient_checkpointing"])}))  # fmt: skip


def _settle(modules: Any) -> None:
    for module in list(modules):
        if getattr(module, "DEVICE_TYPE_TORCH", None) == "cuda":
            module.DEVICE_TYPE_TORCH = "cpu"
        for name, instead in (("torch_gpu_device", lambda *_: contextlib.nullcontext()),
                              ("device_synchronize", lambda *_, **__: None), ("get_current_device", lambda: 0)):
            if hasattr(module, name):
                setattr(module, name, instead)


def _ensure_rope_cache(cache: Any, device: int) -> int:
    if cache._rope_cache_stale(cache.multi_gpu_cos_cached[0], 0):
        cache._build_rope_cache(0)
    return 0


def _build_rope_cache(cache: Any, device: int) -> None:
    size = cache.current_rope_size
    with cache._rope_build_mode():
        cache._set_cos_sin_cache(seq_len=cache._rope_cache_rows(), device=torch.device("cpu", 0),
                                 dtype=cache._rope_cache_dtype)  # fmt: skip
    cache.current_rope_size = size
    cache._rope_cache_versions[0] = cache._rope_cache_version
    cache._mark_rope_build(0)
