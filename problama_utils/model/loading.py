"""Load the policy, attach its LoRA adapter, save and reload it, with the same calls for every profile.

On a CUDA machine they call unsloth's `FastLanguageModel` with the slides' own arguments; on a CPU transformers and
peft, or unsloth's CPU backend on request. The reference policy needs no second copy of the weights: it is the same
model with its adapter switched off.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from problama_utils import CourseError
from problama_utils.config import Profile, cache_dir
from problama_utils.model.adapters import KEY_MAPPING, adapter_folder, check_adapter
from problama_utils.model.weights import embedded_model_dir, first_line, quiet_transformers
from problama_utils.setup.gpu import GPU_LOCK, samples_with_vllm
from problama_utils.setup.hub import (
    chosen_name,
    clear_text_trouble,
    on_hub,
    refusal,
    refusal_sentence,
    scrubbed,
    shows_token,
)
from problama_utils.setup.install import installed_version
from problama_utils.setup.machine import model_here

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPE_VARIABLE = "PROBLAMA_DTYPE"
SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def model_source(profile: Profile) -> str:
    """Return the folder or hub id the weights come from; PROBLAMA_MODEL and PROBLAMA_UNGATED=1 exchange it."""
    chosen = chosen_name(profile)
    return str(embedded_model_dir()) if chosen == "embedded" else chosen


def load_policy(profile: Profile, *, seed: int | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return `(model, tokenizer)`, ready for `attach_lora` or for generation; a `seed` makes what follows repeatable.

    Raises:
        CourseError: the weights cannot be had (gated: the message names the switch), or the backend is missing.
    """
    import_backend(profile)
    if seed is not None:
        from transformers import set_seed

        set_seed(seed)
    load = _load_with_unsloth if profile.backend == "unsloth" else _load_with_transformers
    source = model_source(profile)
    if on_hub(source) and (trouble := clear_text_trouble()):
        raise CourseError(trouble)
    refused = None
    try:
        with quiet_transformers() if model_here(source) else nullcontext():  # gigabytes to fetch deserve a bar
            model, tokenizer = load(profile, source)
    except Exception as error:  # each library wraps the hub's 401 or 403 in an error of its own
        if status := refusal(error):
            refused = CourseError(refusal_sentence(source, status))
        elif shows_token(error):
            refused = CourseError(scrubbed(f"The model {source!r} could not be loaded ({first_line(error)}): check its "
                                           "name (PROBLAMA_MODEL) and your token, or set PROBLAMA_PROFILE=cpu."))
        else:
            raise
    if refused:  # raised out here, since a chained traceback would print what a hub echoes, a token included
        raise refused
    from problama_utils.engine.layers import first_broken_weight  # late: unsloth comes first

    if chosen_name(profile) != "embedded" and (broken := first_broken_weight(model)):  # that one has just been checked
        raise CourseError(f"The model {source!r} holds NaN or infinite values in its weight {broken!r}: fetch or save "
                          "it again, or name another in PROBLAMA_MODEL.")
    # Generation continues a prompt at its right end, so padding goes to the left. Saved tokenizers forget this.
    tokenizer.padding_side = "left"
    tokenizer.clean_up_tokenization_spaces = False  # WordPiece's habit; transformers warns where a BPE tokenizer has it
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def import_backend(profile: Profile) -> None:
    """Import unsloth where the profile loads with it: it patches transformers and TRL, so it has to come before them.

    `load_policy` calls this itself; a notebook that uses transformers before it loads the policy calls it first.

    Raises:
        CourseError: unsloth cannot be imported.
    """
    if profile.backend != "unsloth":
        return
    # the code that it generates belongs into the course's cache, not into the reader's folder
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_dir() / "unsloth_compiled_cache"))
    try:
        import unsloth  # noqa: F401
    except ImportError as error:
        raise CourseError(f"Profile {profile.name!r} loads its model through unsloth, which cannot be imported here "
                          f"({error}). Install it with `python problama_utils/setup/install.py`, or set "
                          "PROBLAMA_PROFILE=cpu.") from error


def _load_with_unsloth(profile: Profile, source: str) -> tuple[Any, Any]:
    from unsloth import FastLanguageModel

    try:
        return FastLanguageModel.from_pretrained(
            model_name=source,
            max_seq_length=profile.max_seq_length,
            max_lora_rank=profile.lora.r,  # vLLM reserves room for it
            load_in_4bit=profile.load_in_4bit,
            fast_inference=samples_with_vllm(profile),
            gpu_memory_utilization=profile.gpu_memory_utilization,
            **({"dtype": compute_dtype(profile)} if os.environ.get(DTYPE_VARIABLE, "").strip() else {}),
        )
    except ImportError as error:
        if not samples_with_vllm(profile):
            raise
        raise CourseError(f"vLLM {installed_version('vllm')} is installed but cannot be loaded "
                          f"({first_line(error):.200}): install {GPU_LOCK} into a fresh environment, or remove vLLM "
                          "(`pip uninstall vllm`), and "
                          "unsloth's own `generate` samples instead.") from error


def _load_with_transformers(profile: Profile, source: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"dtype": compute_dtype(profile), "use_safetensors": True, "trust_remote_code": False}
    if profile.load_in_4bit:
        options["quantization_config"] = nf4_config(profile)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(source, **options)
    except OSError as error:
        raise CourseError(f"No model could be read from {source!r} ({first_line(error)}). PROBLAMA_MODEL takes a local "
                          "folder or a hub id; unset it to use the embedded model.") from error
    if profile.load_in_4bit:
        from problama_utils.model.quantisation import keep_differentiable

        keep_differentiable(model)
    return model, tokenizer


def nf4_config(profile: Profile) -> BitsAndBytesConfig:
    """Return QLoRA's 4 bits for transformers: NF4 with double quantisation (arXiv:2305.14314, section 3)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=compute_dtype(profile))


def compute_dtype(profile: Profile | None = None) -> torch.dtype:
    """Return the type that matrices are multiplied in: PROBLAMA_DTYPE, else what the hardware does natively.

    That is bf16 where the processor or card multiplies it natively, else fp32 (CPU) or fp16 (GPU).
    `torch.cuda.is_bf16_supported()` answers True on a T4, where bf16 is emulated: the compute capability decides. A
    profile that uses no GPU computes on the CPU with any card; None asks for this machine's own.

    Raises:
        CourseError: PROBLAMA_DTYPE names no such type, or float16 for a CPU, on which its training overflows.
    """
    import torch

    on_card = torch.cuda.is_available() and (profile is None or profile.uses_gpu)
    wanted = os.environ.get(DTYPE_VARIABLE, "").strip().lower().removeprefix("torch.")
    wanted = SHORT.get(wanted, wanted)
    possible = ["float32", "bfloat16", *(["float16"] if on_card else [])]
    if wanted in possible:
        return getattr(torch, wanted)
    if wanted:
        raise CourseError(f"{DTYPE_VARIABLE} = {wanted!r}, expected {' or '.join(possible)} on this "
                          f"{'card' if on_card else 'CPU'}: choose one, or unset it for what suits this machine.")
    if on_card:
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    # torch's own probes are private: one that is gone or fails counts as a no, since fp32 runs everywhere
    for probe in ("_is_avx512_bf16_supported", "_is_amx_bf16_supported", "_is_amx_tile_supported"):
        with suppress(AttributeError, TypeError, RuntimeError):
            if getattr(torch.cpu, probe)():
                return torch.bfloat16
    return torch.float32


def attach_lora(model: PreTrainedModel, profile: Profile, *, seed: int | None = None) -> PreTrainedModel:
    """Return the model with a fresh LoRA adapter on the profile's target modules; only the adapter is trainable.

    B starts at zero, so the adapted policy begins exactly at the reference policy (arXiv:2106.09685, section 4.1). A
    is drawn with `seed`, else with `profile.lora.random_state`.
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
    return get_peft_model(model, LoraConfig(r=lora.r, lora_alpha=lora.lora_alpha, task_type="CAUSAL_LM",
                                            target_modules=list(lora.target_modules)))


def load_adapter(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Return the model with the adapter saved in `folder` on top, frozen; see `load_adapters`."""
    return load_adapters(model, {"default": folder})


def load_adapters(model: PreTrainedModel, folders: Mapping[str, str | Path]) -> PeftModel:
    """Return the model with several saved adapters in memory, frozen, the first one active; see `speaking_as`.

    One base model serves all of them: three policies of 8B parameters in 4 bits take 6.4 GB instead of 17.

    Args:
        model: the bare base model, from `load_policy`.
        folders: name → folder of its adapter (safetensors).

    Raises:
        CourseError: no folder at all, a name that peft cannot take, or an adapter that is missing, broken or made for
            another architecture (`model.adapters`); all are checked before the first is loaded.
    """
    from peft import PeftModel

    if not folders:
        raise CourseError("No adapter is named: give at least one name and folder.")
    if hasattr(model, "peft_config"):
        raise CourseError("The model has an adapter already: give the base model that `load_policy` returns.")
    for name in folders:
        if not (isinstance(name, str) and name.strip()) or "." in name or "lora_" in name:
            raise CourseError(f"An adapter cannot be called {name!r}: use letters, digits and hyphens.")
    places = {name: adapter_folder(folder) for name, folder in folders.items()}
    for place in places.values():
        check_adapter(model, place)
    (first, place), *others = places.items()
    try:
        tuned = PeftModel.from_pretrained(model, str(place), adapter_name=first, key_mapping=KEY_MAPPING)
        for name, place in others:
            tuned.load_adapter(str(place), adapter_name=name, key_mapping=KEY_MAPPING)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CourseError(f"The adapter in {place.name!r} does not fit this model ({first_line(error)}): load the base "
                          "model that it was trained on.") from error
    return tuned


@contextmanager
def speaking_as(model: PeftModel, name: str | None) -> Iterator[PeftModel]:
    """Let one of the adapters of `load_adapters` speak within a `with`, or the base model (None); then as before.

    Raises:
        CourseError: no adapter of that name is in memory.
    """
    loaded = getattr(model, "peft_config", {})
    if name is not None and name not in loaded:
        raise CourseError(f"No adapter {name!r} is in memory, there are {', '.join(map(repr, loaded)) or 'none'}: name "
                          "one of these, or None for the base model.")
    if not loaded:
        yield model
        return
    trainable = {id(weight) for weight in model.parameters() if weight.requires_grad}
    before = model.active_adapter
    try:
        if name is None:
            with model.disable_adapter():
                yield model
        else:
            model.set_adapter(name, inference_mode=True)
            yield model
    finally:  # peft makes every adapter that it switches on trainable
        model.set_adapter(before)
        for weight in model.parameters():
            weight.requires_grad_(id(weight) in trainable)


def parameter_counts(model: PreTrainedModel) -> dict[str, int]:
    """Return how many parameters are `trainable` and how many there are in `total`.

    A 4-bit weight is stored two to a byte; its logical size is counted, as in the literature.
    """
    from problama_utils.model.sizes import logical_size

    sizes = [(logical_size(weight), weight.requires_grad) for weight in model.parameters()]
    return {"trainable": sum(size for size, trains in sizes if trains), "total": sum(size for size, _ in sizes)}
