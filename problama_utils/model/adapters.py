"""A LoRA adapter on disk, checked before it is loaded: settings, then names and shapes, then every value.

peft checks little: it skips tensors whose names it does not know, allocates any rank that the settings ask for
and loads weights of NaN. So the settings are read first, the file's header is compared with the model's layers before
anything is allocated, and the values are read tensor by tensor, so that memory stays small.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from problama_utils import CourseError

if TYPE_CHECKING:
    from torch import nn

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MAX_RANK = 4096  # full rank of an 8B model's layers: a higher rank adds parameters and nothing else
MAX_ALPHA = 1e6
FLOATS = ("F16", "BF16", "F32", "F64")
# Older savers leave the adapter's name in the key; peft would look for it under lora_A.default.default.
KEY_MAPPING = {r"\.default(?=\.weight$|\.bias$|$)": ""}
PREFIX = "base_model.model."
CURE = "train it again, or take an adapter of assets/runs"
FIT = "it is damaged, or it was trained on another base model: load that one, or train it again"


def adapter_folder(folder: str | Path) -> Path:
    """Return the path of an adapter's folder (`~` expanded), once both its files are there.

    Raises:
        CourseError: a file instead of a folder, a missing file, or weights as a pickle.
    """
    folder = Path(os.path.expanduser(folder))
    if os.path.isfile(folder):
        raise CourseError(f"{folder.name!r} is a file: name the folder that holds {CONFIG} and {WEIGHTS}.")
    if not os.path.isfile(folder / WEIGHTS):
        if os.path.isfile(folder / "adapter_model.bin"):
            raise CourseError(f"The {_name(folder)} has its weights as a pickle (adapter_model.bin), which can run "
                              f"code when it is opened, and no {WEIGHTS}: save it again as safetensors.")
        raise CourseError(f"There is no adapter in {folder.name!r} (no {WEIGHTS}): run the training notebook first, "
                          "it saves one at the end.")
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """Return the settings in `adapter_config.json`.

    Raises:
        CourseError: missing, not JSON, or no JSON object.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({_first_line(error)})"
        raise CourseError(f"{CONFIG} of the {_name(folder)} {what}: save the adapter again.") from error
    if not isinstance(config, dict):
        raise CourseError(f"{CONFIG} of the {_name(folder)} holds {type(config).__name__}, expected a JSON object: "
                          "save the adapter again.")
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

    name = _name(folder)
    config = read_config(folder)
    _check_settings(config, name)
    expected = _expected_shapes(model, config, folder)
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            keys = list(file.keys())
            _check_names(keys, expected, name)
            for key in keys:
                _check_tensor(file.get_slice(key), expected[_plain(key)], f"{key!r} of the {name}", config["r"])
            for key in keys:
                values = file.get_tensor(key)
                if not torch.isfinite(values).all():
                    what = "NaN" if values.isnan().any() else "infinite"
                    raise CourseError(f"The tensor {key!r} of the {name} holds values that are {what}: {CURE}.")
    except (SafetensorError, OSError) as error:
        raise CourseError(f"{WEIGHTS} of the {name} cannot be read ({_first_line(error)}): it is empty, cut off or "
                          f"not in the safetensors format; {CURE}.") from error


def _check_settings(config: Mapping[str, Any], name: str) -> None:
    targets = config.get("target_modules")
    named = isinstance(targets, list) and targets and all(isinstance(target, str) and target for target in targets)
    rules = {
        "peft_type": (config.get("peft_type") == "LORA", '"LORA", the one kind that the course trains'),
        "task_type": (config.get("task_type") in (None, "CAUSAL_LM"), '"CAUSAL_LM"'),
        "r": (_is_rank(config.get("r")), f"a whole number from 1 to {MAX_RANK}"),
        "lora_alpha": (_is_scale(config.get("lora_alpha")), f"a number above 0, at most {MAX_ALPHA:.0f}"),
        "target_modules": (named or _is_pattern(targets), "a list of module names, or a regular expression"),
        "rank_pattern": (_is_table(config.get("rank_pattern"), _is_rank), "a table of module names and ranks"),
        "alpha_pattern": (_is_table(config.get("alpha_pattern"), _is_scale), "a table of module names and scales"),
    }
    dropout = config.get("lora_dropout", 0)
    rules["lora_dropout"] = (isinstance(dropout, (int, float)) and 0 <= dropout < 1, "a number from 0 to below 1")
    for option in ("modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication"):
        rules[option] = (not config.get(option), "empty: an adapter of the course adds two matrices to each layer and "
                         "replaces nothing")
    for option in ("use_dora", "use_rslora", "lora_bias", "fan_in_fan_out"):
        rules[option] = (config.get(option) in (None, False, True), "true or false")
    for setting, (holds, rule) in rules.items():
        if not holds:
            value = repr(config.get(setting))
            value = value if len(value) <= 60 else value[:57] + "..."
            raise CourseError(f"{CONFIG} of the {name} has {setting} = {value}, expected {rule}: {CURE}.")


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_RANK


def _is_scale(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= MAX_ALPHA


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(value) and bool(re.compile(value))
    except re.error:
        return False


def _is_table(value: Any, holds: Callable[[Any], bool]) -> bool:
    if not value:
        return value in (None, {})
    return isinstance(value, dict) and all(_is_pattern(key) and holds(item) for key, item in value.items())


def _expected_shapes(model: nn.Module, config: Mapping[str, Any], folder: Path) -> dict[str, tuple[int, ...]]:
    """Return tensor name → shape of the adapter that these settings describe on this model."""
    from peft import PeftConfig
    from peft.utils.other import get_pattern_key

    try:
        lora = PeftConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CourseError(f"{CONFIG} of the {_name(folder)} is refused by peft ({_first_line(error)}): "
                          f"{CURE}.") from error
    shapes: dict[str, tuple[int, ...]] = {}
    for key, module in _targeted(model, lora, folder):
        sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
        if None in sizes:
            raise CourseError(f"The {_name(folder)} adapts {key!r}, which is a {type(module).__name__} in this model, "
                              f"expected a linear layer: {FIT}.")
        rank = lora.rank_pattern.get(get_pattern_key(lora.rank_pattern.keys(), key), lora.r)
        shapes[f"{PREFIX}{key}.lora_A.weight"] = (rank, sizes[0])
        shapes[f"{PREFIX}{key}.lora_B.weight"] = (sizes[1], rank)
        if lora.lora_bias:
            shapes[f"{PREFIX}{key}.lora_B.bias"] = (sizes[1],)
        if lora.use_dora:
            shapes[f"{PREFIX}{key}.lora_magnitude_vector"] = (sizes[1],)
    return shapes


def _targeted(model: nn.Module, lora: Any, folder: Path) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that the settings name, as peft chooses them."""
    from peft.tuners.tuners_utils import check_target_module_exists

    modules = dict(model.named_modules())
    if lora.target_modules == "all-linear":
        head = model.get_output_embeddings()
        lora.target_modules = {key for key, module in modules.items()
                               if hasattr(module, "in_features") and module is not head}
    if not isinstance(lora.target_modules, str):
        lacking = [target for target in sorted(lora.target_modules)
                   if not any(key == target or key.endswith(f".{target}") for key in modules)]
        if lacking:
            raise CourseError(f"The {_name(folder)} adapts {', '.join(lacking[:3])}, which this model lacks: {FIT}.")
    chosen = [key for key in modules
              if isinstance(found := check_target_module_exists(lora, key), (bool, re.Match)) and found]
    if not chosen:
        raise CourseError(f"The {_name(folder)} adapts no module of this model "
                          f"(target_modules = {lora.target_modules!r:.60}): {FIT}.")
    yield from ((key, modules[key]) for key in chosen)


def _check_names(keys: list[str], expected: Mapping[str, Any], name: str) -> None:
    found = [_plain(key) for key in keys]
    unknown = [key for key in found if key not in expected]
    missing = [key for key in expected if key not in set(found)]
    if missing or unknown:
        parts = [f"missing: {key}" for key in missing[:1]] + [f"unknown: {key:.80}" for key in unknown[:1]]
        raise CourseError(f"The {name} does not fit this model: it holds "
                          f"{len(expected) - len(missing)} of {len(expected)} tensors and {len(unknown)} others "
                          f"({'; '.join(parts)}); {FIT}.")
    if len(set(found)) != len(found):
        twice = next(key for key in found if found.count(key) > 1)
        raise CourseError(f"The {name} holds {twice!r} twice, with and without an adapter's name: "
                          f"{CURE}.")


def _check_tensor(header: Any, expected: tuple[int, ...], what: str, rank: int) -> None:
    shape, dtype = tuple(header.get_shape()), header.get_dtype()
    if shape != expected:
        raise CourseError(f"The adapter does not fit this model: {what} has shape {shape}, expected {expected} for a "
                          f"rank r = {rank}; {FIT}.")
    if dtype not in FLOATS:
        raise CourseError(f"The tensor {what} has the type {dtype}, expected one of {', '.join(FLOATS)}: {CURE}.")


def _plain(key: str) -> str:
    for pattern, replacement in KEY_MAPPING.items():
        key = re.sub(pattern, replacement, key)
    return key


def _name(folder: Path) -> str:
    return f"adapter in {'/'.join(folder.parts[-2:])!r}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
