"""A LoRA adapter on disk, checked before it is loaded: settings, then names and shapes, then every value.

peft checks little: it skips tensors whose names it does not know, allocates any rank that the settings ask for
and loads weights of NaN. So the settings are read first, the file's header is compared with the model's layers before
anything is allocated, and the values are read tensor by tensor, so that memory stays small.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from problama_utils import CourseError
from problama_utils.model.weights import first_line

if TYPE_CHECKING:
    from torch import nn

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MAX_RANK = 4096  # full rank of an 8B model's layers: a higher rank adds parameters and nothing else
MAX_ALPHA = 1e6
FLOATS = ("F16", "BF16", "F32", "F64")
NOT_OURS = ("modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication")  # replace weights
FLAGS = ("use_dora", "use_rslora", "lora_bias", "fan_in_fan_out")
# Older savers leave the adapter's name in the key; peft would look for it under lora_A.default.default.
KEY_MAPPING = {r"\.default(?=\.weight$|\.bias$|$)": ""}
CURE = "train it again, or take an adapter of assets/runs"
FIT = "it is damaged, or it was trained on another base model: load that one, or train it again"


def adapter_folder(folder: str | Path) -> Path:
    """Return the path of an adapter's folder (`~` expanded), once its weights are there.

    Raises:
        CourseError: a file instead of a folder, no weights, or weights as a pickle.
    """
    folder = Path(os.path.expanduser(folder))
    if os.path.isfile(folder):
        raise CourseError(f"{folder.name!r} is a file: name the folder that holds {CONFIG} and {WEIGHTS}.")
    if not os.path.isfile(folder / WEIGHTS):
        cure = "run the training notebook first, it saves one at the end"
        if os.path.isfile(folder / "adapter_model.bin"):
            cure = "its adapter_model.bin is a pickle, which can run code when it is opened; save it as safetensors"
        raise CourseError(f"There is no adapter in {folder.name!r} (no {WEIGHTS}): {cure}.")
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """Return the settings in `adapter_config.json`.

    Raises:
        CourseError: missing, not JSON, or no JSON object.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise TypeError(f"it holds {type(config).__name__}, expected a JSON object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CourseError(f"{CONFIG} of the {_name(folder)} cannot be read ({first_line(error):.160}): save the "
                          "adapter again.") from error
    return config


def check_adapter(model: nn.Module, folder: Path) -> None:
    """Compare the adapter in `folder` with the model that it is meant for; nothing is loaded, nothing is changed.

    Args:
        model: the bare policy, in 16 or 32 bits or in 4.
        folder: from `adapter_folder`.

    Raises:
        CourseError: bad settings, tensors that are missing, unknown or of another shape, values that are no numbers.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    name, config = _name(folder), read_config(folder)
    try:
        bad = _bad_setting(config)
        expected = {} if bad else _expected_shapes(model, folder)
    except (TypeError, ValueError, KeyError, AttributeError, re.error) as error:  # ours and peft's
        raise CourseError(f"{CONFIG} of the {name} describes no LoRA adapter for this model "
                          f"({first_line(error):.160}): {FIT}.") from error
    if bad:
        raise CourseError(f"{CONFIG} of the {name} has {bad} = {repr(config.get(bad)):.60}, which no adapter of the "
                          f"course has: {CURE}.")
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            keys = list(file.keys())
            shapes = {_plain(key): tuple(file.get_slice(key).get_shape()) for key in keys}
            for key in sorted(expected.keys() | shapes.keys()):
                if shapes.get(key) != expected.get(key):
                    raise CourseError(f"The {name} does not fit this model: its tensor {key:.100} has the shape "
                                      f"{shapes.get(key)}, expected {expected.get(key)} (None = no such tensor) for a "
                                      f"rank r = {config['r']}; {FIT}.")
            if len(keys) != len(shapes):
                raise CourseError(f"The {name} holds a tensor twice, with and without an adapter's name: {CURE}.")
            for key in keys:
                kind = file.get_slice(key).get_dtype()
                if kind not in FLOATS or not torch.isfinite(file.get_tensor(key)).all():
                    raise CourseError(f"The tensor {key!r} of the {name}, of type {kind}, holds values that are not "
                                      f"finite floating-point numbers: {CURE}.")
    except (SafetensorError, OSError) as error:
        raise CourseError(f"{WEIGHTS} of the {name} cannot be read ({first_line(error):.160}): it is empty, cut off or "
                          f"not in the safetensors format; {CURE}.") from error


def _bad_setting(config: Mapping[str, Any]) -> str:
    """Return the first setting that no adapter of the course has, or ""."""
    by_rank, by_alpha = (config.get(table) or {} for table in ("rank_pattern", "alpha_pattern"))
    for pattern in (*by_rank, *by_alpha):
        re.compile(pattern)
    rules = {
        "peft_type": config.get("peft_type") == "LORA",
        "task_type": config.get("task_type") in (None, "CAUSAL_LM"),
        "r": _is_number(config.get("r"), MAX_RANK, int),
        "rank_pattern": all(_is_number(rank, MAX_RANK, int) for rank in by_rank.values()),
        "lora_alpha": _is_number(config.get("lora_alpha"), MAX_ALPHA, int, float),
        "alpha_pattern": all(_is_number(alpha, MAX_ALPHA, int, float) for alpha in by_alpha.values()),
        "target_modules": bool(config.get("target_modules")),
        "lora_dropout": 0 <= config.get("lora_dropout", 0) < 1,
        **{option: not config.get(option) for option in NOT_OURS},
        **{option: config.get(option) in (None, False, True) for option in FLAGS},
    }
    return next((setting for setting, holds in rules.items() if not holds), "")


def _is_number(value: Any, most: float, *kinds: type) -> bool:
    return type(value) in kinds and 0 < value <= most


def _expected_shapes(model: nn.Module, folder: Path) -> dict[str, tuple[int, ...]]:
    """Return tensor name → shape of the adapter that the settings describe on this model; peft chooses the layers."""
    from peft import PeftConfig
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    lora = PeftConfig.from_pretrained(str(folder))
    modules = dict(model.named_modules())
    if lora.target_modules == "all-linear":
        head = model.get_output_embeddings()
        lora.target_modules = {key for key, module in modules.items()
                               if hasattr(module, "in_features") and module is not head}
    named = [] if isinstance(lora.target_modules, str) else sorted(lora.target_modules)
    lacking = [target for target in named if not any(key == target or key.endswith(f".{target}") for key in modules)]
    chosen = {key: module for key, module in modules.items() if check_target_module_exists(lora, key)}
    if lacking or not chosen:
        raise ValueError(f"this model has no {', '.join(lacking) or lora.target_modules}")
    shapes: dict[str, tuple[int, ...]] = {}
    for key, module in chosen.items():
        rank = lora.rank_pattern.get(get_pattern_key(lora.rank_pattern.keys(), key), lora.r)
        place = f"base_model.model.{key}.lora"
        shapes[f"{place}_A.weight"] = (rank, module.in_features)
        shapes[f"{place}_B.weight"] = (module.out_features, rank)
        if lora.lora_bias:
            shapes[f"{place}_B.bias"] = (module.out_features,)
        if lora.use_dora:
            shapes[f"{place}_magnitude_vector"] = (module.out_features,)
    return shapes


def _plain(key: str) -> str:
    for pattern, replacement in KEY_MAPPING.items():
        key = re.sub(pattern, replacement, key)
    return key


def _name(folder: Path) -> str:
    return f"adapter in {'/'.join(folder.parts[-2:])!r}"
