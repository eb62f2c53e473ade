"""`SharedPrefixGRPOTrainer`: TRL's `GRPOTrainer` with its three slow spots replaced.

Rewards, advantages, loss, metrics, callbacks and checkpoints stay TRL's. Replaced are

1. the sampling of completions (`engine.sampling`: a prompt is read once for its group),
2. the token log-probabilities of policy, old policy and reference policy (`engine.tree`, `engine.layers`: the batch
   as a prefix tree in which nothing is computed twice), and
3. the precision of adapters: fp32 parameters, as the optimiser and the checkpoints want them, cast to the base model's
   dtype where they are multiplied. (TRL casts those of a 4-bit model to bf16 for good, which loses small updates.)

The loss and its gradient are those of the stock trainer, to rounding. What is drawn differs: the distribution is the
same, the use of the random numbers is not, so a seed gives other completions than under the stock trainer.
"""

from __future__ import annotations

import ctypes
import inspect
import warnings
from typing import Any

import torch
from trl import GRPOTrainer

from problama_utils.engine.decoding import DecodingWeights
from problama_utils.engine.layers import UnsupportedModelError, llama_parts, tree_logprobs
from problama_utils.engine.sampling import Sampling, sample_completions
from problama_utils.engine.tree import pack_padded
from problama_utils.training.checkpoints import SafeCheckpoints
from problama_utils.training.checks import check_trainer

# The parts of TRL that are replaced, as in 1.14.2. Where they differ the replacement could be silently wrong.
EXPECTED_SIGNATURES = {
    "_generate_single_turn": (
        "self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images",
    ),
    "_get_per_token_logps_and_entropies": ("self", "model", "args", "batch_size", "compute_aux_loss", "kwargs"),
    "_full_logits_logps": (
        "self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy",
        "compute_aux_loss",
    ),  # its further parameters are images'
    "_compute_loss": ("self", "model", "inputs"),
}  # fmt: skip
PLAIN_GENERATION = {  # settings of TRL that our sampler does not have, with the value that switches each off
    "use_vllm": (False,), "use_transformers_continuous_batching": (False,), "min_p": (None, 0.0),
    "repetition_penalty": (None, 1.0), "cache_implementation": (None,),
}  # fmt: skip


class SharedPrefixGRPOTrainer(SafeCheckpoints, GRPOTrainer):
    """A drop-in `GRPOTrainer` for LoRA on a Llama, made for CPUs; the constructor's arguments are TRL's.

    Where it cannot be sure to do what TRL does (other model, other TRL, a setting its sampler lacks) it trains the
    stock way, wholly or in that part, and warns why, once.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        whole = changed_signatures() + self._unsupported_model()
        sampler = [] if whole else self._unsupported_sampling()
        self.packs_rows, self.samples_shared = not whole, not whole and not sampler
        for part, reasons in (("trains", whole), ("samples", sampler)):
            if reasons:
                warnings.warn(f"SharedPrefixGRPOTrainer {part} the stock way: {'; '.join(reasons)}.", stacklevel=2)
        if self.packs_rows:
            keep_master_weights(self.accelerator.unwrap_model(self.model))
            keep_freed_memory()
        self._decoding: DecodingWeights | None = None

    def _unsupported_model(self) -> list[str]:
        reasons = []
        for model in filter(None, (self.model, self.ref_model)):
            try:
                llama_parts(self.accelerator.unwrap_model(model))
            except (UnsupportedModelError, AttributeError) as error:
                reasons.append(str(error))
        for name in ("is_deepspeed_enabled", "is_fsdp_enabled", "aux_loss_enabled", "use_liger_kernel", "_is_vlm"):
            if getattr(self, name, False):
                reasons.append(f"{name} is set")
        if self.args.cast_lm_head_to_fp32:
            reasons.append("cast_lm_head_to_fp32 is set")
        return reasons

    def _unsupported_sampling(self) -> list[str]:
        reasons = [
            f"{name} = {getattr(self.args, name)!r}"
            for name, off in PLAIN_GENERATION.items()
            if getattr(self.args, name, None) not in off
        ]
        own = {"min_new_tokens", "max_new_tokens", "temperature", "top_k", "top_p", "eos_token_id", "do_sample"}
        extra = sorted(set(self.args.generation_kwargs or {}) - own)
        return reasons + ([f"generation_kwargs has {', '.join(extra)}"] if extra else [])

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        keep_master_weights(self.accelerator.unwrap_model(self.model if model is None else model))

    def _sampling(self) -> Sampling:
        settings = self.generation_config
        stops = settings.eos_token_id
        return Sampling(
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature or 1.0,
            top_k=settings.top_k or 0,
            top_p=1.0 if settings.top_p is None else settings.top_p,
            stop_token_ids=tuple([stops] if isinstance(stops, int) else stops or ()),
            min_new_tokens=settings.min_new_tokens or 0,
            greedy=not settings.do_sample,
        )

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        if not self.samples_shared or images is not None or multimodal_fields:
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
        model = self.accelerator.unwrap_model(self.model_wrapped)
        self._decoding = self._decoding or DecodingWeights(model)
        rollouts = sample_completions(model, prompt_ids, self._sampling(), weights=self._decoding)
        return [rollout.token_ids for rollout in rollouts], None

    def _get_per_token_logps_and_entropies(self, model, *args, batch_size=None, compute_aux_loss=False, **kwargs):
        call = inspect.signature(GRPOTrainer._full_logits_logps).bind(self, model, *args, **kwargs).arguments
        text = EXPECTED_SIGNATURES["_full_logits_logps"]
        images = [name for name, value in call.items() if name not in text and value is not None]
        if not self.packs_rows or compute_aux_loss or images:
            return super()._get_per_token_logps_and_entropies(
                model, *args, batch_size=batch_size, compute_aux_loss=compute_aux_loss, **kwargs
            )
        parts = llama_parts(self.accelerator.unwrap_model(model))
        tree = pack_padded(call["input_ids"], call["attention_mask"], call["logits_to_keep"])
        # `batch_size` bounds the stock pass's memory; the tree of the whole batch is smaller than one of its parts
        with torch.autocast(call["input_ids"].device.type, enabled=False):
            logprobs, entropies = tree_logprobs(
                parts, tree, self.temperature, entropy_gradient=self._entropy_bonus_enabled
            )
        return logprobs, entropies if call.get("compute_entropy") else None, None


def changed_signatures() -> list[str]:
    """Return what differs in the installed TRL from the methods that are replaced; empty when all is as expected."""
    changed = []
    for name, expected in EXPECTED_SIGNATURES.items():
        method = getattr(GRPOTrainer, name, None)
        if method is None:
            changed.append(f"TRL's GRPOTrainer has no {name}")
            continue
        found = tuple(inspect.signature(method).parameters)
        if found[: len(expected)] != expected:
            changed.append(f"TRL's GRPOTrainer.{name} takes {', '.join(found)}")
    return changed


def keep_master_weights(model: torch.nn.Module) -> None:
    """Turn the trainable adapter weights of a PEFT model to fp32, in place; the products are taken in lower precision.

    A bf16 weight near 0.05 cannot change by less than 2e-4, more than most steps at a learning rate of 1e-4.
    """
    if not hasattr(model, "peft_config"):
        return
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.float()


def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed blocks of any size instead of returning them to the system; True if it listened.

    A step frees and allocates gigabytes in pieces of megabytes. Each piece that comes from the system anew is cleared
    page by page, which on a virtual machine takes longer than most operations on it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # not glibc
        return False
    trim_threshold, mmap_max = -1, -4
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))


def trainer_class(name: str = "shared-prefix", *, on_gpu: bool = True) -> type[GRPOTrainer]:
    """Return the trainer of that name: "shared-prefix" (ours) or "stock" (TRL's own).

    On a CUDA card both names give TRL's class: unsloth patches it, and shares prefixes there itself. `on_gpu=False`
    says that the training keeps off a card that there may be.

    Raises:
        CourseError: no such trainer.
    """
    check_trainer(name)
    stock = name == "stock" or (on_gpu and torch.cuda.is_available())
    return GRPOTrainer if stock else SharedPrefixGRPOTrainer


def make_trainer(*args: Any, trainer: str = "shared-prefix", **kwargs: Any) -> GRPOTrainer:
    """Construct `trainer_class(trainer)`; all other arguments are TRL's."""
    on_gpu = not getattr(kwargs.get("args"), "use_cpu", False)
    return trainer_class(trainer, on_gpu=on_gpu)(*args, **kwargs)
