"""Load the policy, attach its LoRA adapter, save and reload it: one door for every profile.

On a CUDA machine the door leads to unsloth's `FastLanguageModel`, called with the slides' own arguments; on a CPU to
transformers and peft, or to unsloth's CPU backend on request. The reference policy needs no second copy of the
weights: it is the same model with its adapter switched off.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from problama_utils.config import Profile
from problama_utils.embedded_model import embedded_model_dir, quiet_transformers
from problama_utils.errors import CourseError
from problama_utils.gated_model import chosen_name, refusal, refusal_sentence

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase


def model_source(profile: Profile) -> str:
    """Return the folder or hub id the weights come from; PROBLAMA_MODEL and PROBLAMA_UNGATED=1 exchange it."""
    chosen = chosen_name(profile)
    return str(embedded_model_dir()) if chosen == "embedded" else chosen


def load_policy(profile: Profile, *, seed: int | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return `(model, tokenizer)`, ready for `attach_lora` or for generation.

    Args:
        profile: decides the weights, 4-bit or not, and the backend (unsloth or transformers).
        seed: seeds torch before loading, so that what follows is repeatable; None leaves the generators alone.

    Raises:
        CourseError: the weights cannot be had (gated: the message names the switch), or the backend is missing.
    """
    if seed is not None:
        from transformers import set_seed

        set_seed(seed)
    load = _load_with_unsloth if profile.backend == "unsloth" else _load_with_transformers
    source = model_source(profile)
    try:
        with quiet_transformers():
            model, tokenizer = load(profile, source)
    except Exception as error:  # each library wraps the hub's 401 or 403 in an error of its own
        if not (status := refusal(error)):
            raise
        raise CourseError(refusal_sentence(source, status)) from error
    # Generation continues a prompt at its right end, so padding goes to the left. Saved tokenizers forget this.
    tokenizer.padding_side = "left"
    tokenizer.clean_up_tokenization_spaces = False  # WordPiece's habit; transformers warns where a BPE tokenizer has it
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _load_with_unsloth(profile: Profile, source: str) -> tuple[Any, Any]:
    try:
        from unsloth import FastLanguageModel
    except ImportError as error:
        raise CourseError(f"Profile {profile.name!r} loads its model through unsloth, which cannot be imported here "
                          f"({error}). Install it with `python problama_utils/install.py`, or set PROBLAMA_PROFILE=cpu."
                          ) from error
    return FastLanguageModel.from_pretrained(
        model_name=source,
        max_seq_length=profile.max_seq_length,
        max_lora_rank=profile.max_lora_rank,
        load_in_4bit=profile.load_in_4bit,
        fast_inference=profile.fast_inference,
        gpu_memory_utilization=profile.gpu_memory_utilization,
    )


def _load_with_transformers(profile: Profile, source: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"dtype": compute_dtype(), "use_safetensors": True, "trust_remote_code": False}
    if profile.load_in_4bit:
        options["quantization_config"] = nf4_config()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(source, **options)
    except OSError as error:
        first_line = str(error).strip().splitlines()[0]
        raise CourseError(f"No model could be read from {source!r} ({first_line}). PROBLAMA_MODEL takes a local folder "
                          "or a hub id; unset it to use the embedded model.") from error
    if profile.load_in_4bit:
        from problama_utils.quantisation import keep_differentiable

        keep_differentiable(model)
    return model, tokenizer


def nf4_config() -> BitsAndBytesConfig:
    """Return QLoRA's 4 bits for transformers: NF4 with double quantisation (arXiv:2305.14314, section 3)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=compute_dtype())


def compute_dtype() -> torch.dtype:
    """Return bf16 where the hardware multiplies it natively, else fp32 (CPU) or fp16 (GPU).

    `torch.cuda.is_bf16_supported()` answers True on a T4, where bf16 is emulated: the compute capability decides.
    """
    import torch

    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def attach_lora(model: PreTrainedModel, profile: Profile, *, seed: int | None = None) -> PreTrainedModel:
    """Return the model with a fresh LoRA adapter on the profile's target modules; only the adapter is trainable.

    B starts at zero, so the adapted policy begins exactly at the reference policy (arXiv:2106.09685, section 4.1).

    Args:
        model: from `load_policy`.
        profile: rank, scale and target modules (`profile.lora`).
        seed: of A's random entries; None takes `profile.lora.random_state`.
    """
    lora = profile.lora
    seed = lora.random_state if seed is None else seed
    if profile.backend == "unsloth":
        from unsloth import FastLanguageModel

        return FastLanguageModel.get_peft_model(
            model,
            r=lora.r,
            target_modules=list(lora.target_modules),
            lora_alpha=lora.lora_alpha,
            use_gradient_checkpointing=lora.use_gradient_checkpointing,
            random_state=seed,
        )
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import set_seed

    if profile.load_in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=bool(lora.use_gradient_checkpointing))
    set_seed(seed)
    targets = list(lora.target_modules)
    shape = LoraConfig(r=lora.r, lora_alpha=lora.lora_alpha, target_modules=targets, task_type="CAUSAL_LM")
    return get_peft_model(model, shape)


def load_adapter(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Return the model with the adapter saved in `folder` (safetensors) on top, frozen, for evaluation.

    Raises:
        CourseError: the folder holds no adapter, or one made for another architecture.
    """
    from peft import PeftModel

    folder = Path(folder)
    if not (folder / "adapter_model.safetensors").exists():
        raise CourseError(f"There is no adapter in {folder.name!r} (no adapter_model.safetensors): run the training "
                          "notebook first, it saves one at the end.")
    try:
        return PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise CourseError(f"The adapter in {folder.name!r} does not fit this model ({first_line}): load the base model "
                          "that it was trained on.") from error


def parameter_counts(model: PreTrainedModel) -> dict[str, int]:
    """Return how many parameters are `trainable` and how many there are in `total`.

    A 4-bit weight is stored two to a byte; its logical size is counted, as in the literature.
    """
    from problama_utils.model_size import logical_size

    sizes = [(logical_size(weight), weight.requires_grad) for weight in model.parameters()]
    return {"trainable": sum(size for size, trains in sizes if trains), "total": sum(size for size, _ in sizes)}
