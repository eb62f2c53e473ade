"""What the installed libraries accept: look a dotted path up and bind arguments to it.

A callee with a `**kwargs` would accept any name, so that a removed argument would pass unseen. For each such callee
`CONSUMERS` names the functions that use up its keywords; the names are read from their signatures and from the
`kwargs.pop("name")`, `kwargs.get("name")`, `kwargs["name"]`, `"name" in kwargs` of their source. A callee that is not
in the table takes no names beyond its explicit ones.

unsloth's classes import only where there is a GPU: their parameters are in `unsloth_signatures.json`, which
`test_drift.py` (slow) compares with the source in the wheel.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import json
import textwrap
import zipfile
from pathlib import Path
from typing import Any

LIBRARIES = ("unsloth", "unsloth_zoo", "trl", "peft", "bitsandbytes", "transformers", "datasets")
UNSLOTH_RECORD = Path(__file__).resolve().parent / "unsloth_signatures.json"
FORWARD_NAMES = {"input_ids", "inputs_embeds", "past_key_values", "use_cache", "attention_mask", "logits_to_keep"}

LLAMA, TOKENIZER = "transformers.LlamaForCausalLM", "transformers.PreTrainedTokenizerFast"
# What the course's objects are where the code promises less: every policy is a Llama, every tokenizer a fast one.
CONCRETE = {"transformers.PreTrainedModel": LLAMA, "transformers.PreTrainedTokenizerBase": TOKENIZER,
            "peft.PeftModel": "peft.PeftModelForCausalLM"}
# A policy is annotated as a PreTrainedModel, with and without its adapter: peft's methods count as well, and those
# of the LoraModel inside, to which peft passes on what it does not have itself.
_PEFT = ("peft.PeftModelForCausalLM", "peft.tuners.lora.LoraModel")
ALSO = {"transformers.PreTrainedModel": _PEFT, LLAMA: _PEFT, "peft.PeftModelForCausalLM": _PEFT[1:],
        "peft.PeftModel": _PEFT}
RESULTS = {  # callee → class of what it returns, where neither a constructor nor an alternative one
    "transformers.AutoModelForCausalLM.from_pretrained": LLAMA,
    "transformers.AutoModelForCausalLM.from_config": LLAMA,
    "transformers.AutoTokenizer.from_pretrained": TOKENIZER,
    "peft.get_peft_model": "peft.PeftModelForCausalLM",
    "peft.PeftModel.from_pretrained": "peft.PeftModelForCausalLM",
    "peft.prepare_model_for_kbit_training": LLAMA,
    "datasets.Dataset.select": "datasets.Dataset", "datasets.Dataset.shuffle": "datasets.Dataset",
    "datasets.Dataset.map": "datasets.Dataset", "datasets.Dataset.filter": "datasets.Dataset",
}  # fmt: skip
_MODEL = ["transformers.PreTrainedModel.from_pretrained", "transformers.AutoConfig.from_pretrained"]
_TOKENIZER = ["transformers.PreTrainedTokenizerBase.from_pretrained", "transformers.PreTrainedTokenizerBase.__init__",
              "transformers.PreTrainedTokenizerFast.__init__",
              "transformers.PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES"]
CONSUMERS = {  # qualified name of a callee with **kwargs → what uses the keywords up
    "_BaseAutoModelClass.from_pretrained": _MODEL,
    "_BaseAutoModelClass.from_config": ["transformers.PreTrainedModel._from_config"],
    "PreTrainedModel.from_pretrained": _MODEL,
    "PreTrainedConfig.from_pretrained": ["its fields"],
    "AutoTokenizer.from_pretrained": [*_TOKENIZER, "transformers.AutoTokenizer.from_pretrained"],
    "PreTrainedTokenizerBase.from_pretrained": _TOKENIZER,
    "TokenizersBackend": _TOKENIZER,
    "GenerationConfig": [],  # its own pops
    "GenerationMixin.generate": ["transformers.GenerationConfig.__init__", f"{LLAMA}.forward"],
    "PeftModelForCausalLM.generate": ["transformers.GenerationConfig.__init__", f"{LLAMA}.forward"],
    "PeftModelForCausalLM.forward": [f"{LLAMA}.forward"],
}
# Names that reach no signature, each with its reason.
ALLOWED = {
    ("TokenizersBackend", "unk_token"): "a special token, set through the property of that name",
}
DUCKS = (LLAMA, "peft.PeftModelForCausalLM", TOKENIZER, "trl.GRPOTrainer", "datasets.Dataset")


class UnreadableError(Exception):
    """The path does not exist in what is installed, or its signature cannot be read."""


@functools.cache
def look_up(path: str) -> Any:
    """Return the object at a dotted path; raise `UnreadableError` where the installed release has none."""
    if path.split(".")[0] in ("unsloth", "unsloth_zoo"):
        return _unsloth_names(path) if path.count(".") == 2 else None
    names = path.split(".")
    for length in range(len(names), 0, -1):
        try:
            found = importlib.import_module(".".join(names[:length]))
        except ModuleNotFoundError as error:
            if length > 1 and (error.name or "").startswith(names[0]):
                continue
            raise UnreadableError(f"{path} cannot be imported ({error})") from error
        for depth in range(length, len(names)):
            try:
                found = getattr(found, names[depth])
            except AttributeError:
                raise UnreadableError(f"{'.'.join(names[:depth])} has no {names[depth]!r}") from None
        return found
    raise UnreadableError(f"{path} cannot be imported")


def known_result(path: str) -> str | None:
    """Return the dotted path of the class that calling `path` yields, None where that is not known."""
    if path in RESULTS:
        return RESULTS[path]
    try:
        found = look_up(path)
    except UnreadableError:
        return None
    if inspect.isclass(found):
        return CONCRETE.get(path, path)
    owner = path.rpartition(".")[0]
    return owner if path.rpartition(".")[2].startswith("from_") and inspect.ismethod(found) else None


@functools.cache
def member(path: str, name: str) -> tuple[str, str]:
    """Say what attribute `name` of the class at `path` is, and of which class: its own, or the one it may also be.

    Returns:
        "method", "data" (a property or a field) or "missing"; and the dotted path of the class.
    """
    for candidate in (CONCRETE.get(path, path), *ALSO.get(path, ())):
        owner = look_up(candidate)
        if inspect.getattr_static(owner, name, None) is not None:
            return ("method" if callable(getattr(owner, name, None)) else "data"), candidate
    return ("data" if name in getattr(look_up(path), "__annotations__", {}) else "missing"), path


def bind(target: str, positional: int, names: tuple[str, ...], whole: bool = True) -> str | None:
    """Bind a call's arguments to the installed signature; return what does not fit, None where all does.

    Args:
        target: dotted path of the callee; `Class.method` is bound as a call on an instance.
        positional: number of positional arguments, −1 = unknown (then only names are checked).
        names: of the keyword arguments.
        whole: nothing else is passed, so that a parameter without a default has to be among them.
    """
    try:
        signature, qualified, found = _signature(target)
    except UnreadableError as error:
        return str(error)
    values = [None] * max(positional, 0)
    try:
        (signature.bind if whole and positional >= 0 else signature.bind_partial)(*values, **dict.fromkeys(names))
    except TypeError as error:
        return str(error)
    explicit = {p.name for p in signature.parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    unknown = [name for name in names if name not in explicit | _swallowed(found, qualified)
               and (qualified, name) not in ALLOWED]
    lost = ", ".join(map(repr, unknown))
    return f"{qualified} has no use for {lost}: it would vanish in **kwargs" if unknown else None


@functools.cache
def _signature(target: str) -> tuple[inspect.Signature, str, Any]:
    owner_path, _, name = target.rpartition(".")
    if target.startswith("unsloth"):
        kinds = {True: inspect.Parameter.POSITIONAL_OR_KEYWORD, False: inspect.Parameter.VAR_KEYWORD}
        return inspect.Signature([inspect.Parameter(n.lstrip("*"), kinds[n[0] != "*"], default=None if n[0] != "*" else
                                                    inspect.Parameter.empty) for n in look_up(target)]), name, None
    try:
        owner = look_up(owner_path)
    except UnreadableError:
        owner = None
    if inspect.isclass(owner):
        path = CONCRETE.get(owner_path, owner_path)
        owner = look_up(path)
        if name == "__call__" and hasattr(owner, "forward"):
            name = "forward"
        found = look_up(f"{path}.{name}")
        if name != "__init__" and inspect.isclass(found):
            return inspect.signature(found), found.__qualname__, found
        drop_self = not isinstance(inspect.getattr_static(owner, name), (staticmethod, classmethod))
    else:
        found, drop_self = look_up(target), False
    try:
        # transformers copies class methods from bound ones: such a wrapper, followed, drops its first argument twice
        copied = inspect.ismethod(getattr(getattr(found, "__func__", found), "__wrapped__", None))
        signature = inspect.signature(found, follow_wrapped=not copied)
    except (TypeError, ValueError) as error:
        raise UnreadableError(f"{target} has no readable signature ({error})") from error
    if drop_self:
        signature = signature.replace(parameters=list(signature.parameters.values())[1:])
    return signature, getattr(found, "__qualname__", name), found


@functools.cache
def _swallowed(callee: Any, qualified: str) -> frozenset[str]:
    """Return the names that a callee's **kwargs are known to be used for."""
    if qualified not in CONSUMERS:
        return frozenset()
    names: set[str] = set()
    listed = list(CONSUMERS[qualified])
    if "its fields" in listed:  # of the dataclass whose alternative constructor this is
        listed.remove("its fields")
        names |= {each.name for each in dataclasses.fields(callee.__self__)}
    for consumer in [callee.__init__ if inspect.isclass(callee) else callee, *map(look_up, listed)]:
        if isinstance(consumer, (list, tuple)):
            names |= set(consumer)
            continue
        names |= {p.name for p in inspect.signature(consumer).parameters.values() if p.kind != p.VAR_KEYWORD}
        names |= used_keywords(inspect.getsource(consumer))
    return frozenset(names)


def used_keywords(source: str) -> set[str]:
    """Return the names that a function takes out of its `kwargs`.

    >>> sorted(used_keywords('def f(**kwargs): kwargs.pop("a", 1); kwargs["b"]; "c" in kwargs; d.pop("e")'))
    ['a', 'b', 'c']
    """
    names = set()
    for node in ast.walk(ast.parse(textwrap.dedent(source))):
        key, holder = None, None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            key, holder = node.args[0], node.func.value if node.func.attr in ("pop", "get", "setdefault") else None
        elif isinstance(node, ast.Subscript):
            key, holder = node.slice, node.value
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
            key, holder = node.left, node.comparators[0]
        if isinstance(key, ast.Constant) and isinstance(key.value, str) and "kwargs" in ast.unparse(holder or key):
            names.add(key.value)
    return names


@functools.cache
def _duck_table() -> dict[str, tuple[str, ...]]:
    """Method name → classes of the libraries that have it, for names that nothing else in reach answers to."""
    import random

    import numpy as np
    import pandas as pd
    import torch

    others = (str, bytes, list, dict, set, tuple, Path, random.Random, np.ndarray, np.random.Generator, pd.DataFrame,
              pd.Series, torch.Tensor, torch.nn.Module, torch.Generator, zipfile.ZipFile)
    taken = {name for other in others for name in dir(other)} | {"train", "select", "push", "log", "save", "evaluate"}
    table: dict[str, tuple[str, ...]] = {}
    for path in DUCKS:
        owner = look_up(path)
        for name in dir(owner):
            if not name.startswith("_") and name not in taken and callable(getattr(owner, name, None)):
                table[name] = (*table.get(name, ()), f"{path}.{name}")
    return table


def duck_targets(name: str) -> tuple[str, ...]:
    """Return the library methods that a call `unknown.name(…)` can only mean; empty where the name decides nothing."""
    return _duck_table().get(name, ())


def _unsloth_names(path: str) -> list[str]:
    record = json.loads(UNSLOTH_RECORD.read_text(encoding="utf-8"))["parameters"]
    name = path.partition(".")[2]
    if name not in record:
        raise UnreadableError(f"{path} is not in {UNSLOTH_RECORD.name}: run `python tests/signatures.py WHEEL ZOO`")
    return record[name]


def unsloth_parameters(wheel: Path, zoo: Path) -> dict[str, list[str]]:
    """Read the parameters of what we call, from the wheels: of the GPU classes, of the CPU backend, and of saving."""
    loader, llama = _classes(wheel, "unsloth/models/loader.py"), _classes(wheel, "unsloth/models/llama.py")
    cpu = _classes(zoo, "unsloth_zoo/cpu/loader.py")["FastCPUModel"]
    with zipfile.ZipFile(wheel) as archive:
        body = ast.parse(archive.read("unsloth/save.py").decode()).body
    saving = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    return {
        "FastLanguageModel.from_pretrained": _names(loader["FastLanguageModel"]["from_pretrained"]),
        # FastLanguageModel.get_peft_model(model, *args, **kwargs) hands over to the Llama's, which names them all.
        "FastLanguageModel.get_peft_model": _names(llama["FastLlamaModel"]["get_peft_model"]),
        "FastCPUModel.from_pretrained": _names(cpu["from_pretrained"]),
        "FastCPUModel.get_peft_model": _names(cpu["get_peft_model"]),
        # what every unsloth model's `save_pretrained_merged` is bound to, and what binds it
        **{f"save.{name}": _names(saving[name]) for name in ("patch_saving_functions",
                                                             "unsloth_generic_save_pretrained_merged")},
    }


def _classes(wheel: Path, file: str) -> dict[str, dict[str, ast.FunctionDef]]:
    with zipfile.ZipFile(wheel) as archive:
        body = ast.parse(archive.read(file).decode()).body
    return {node.name: {inner.name: inner for inner in node.body if isinstance(inner, ast.FunctionDef)}
            for node in body if isinstance(node, ast.ClassDef)}


def _names(function: ast.FunctionDef) -> list[str]:
    """Return the named parameters, and what the function takes out of its **kwargs by name, then the **kwargs."""
    arguments = function.args
    named = [a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]]
    if not arguments.kwarg:
        return named
    return [*named, *sorted(used_keywords(ast.unparse(function)) - set(named)), f"**{arguments.kwarg.arg}"]


if __name__ == "__main__":
    import sys

    wheel, zoo = map(Path, sys.argv[1:])
    record = {"wheel": wheel.name, "parameters": unsloth_parameters(wheel, zoo)}
    UNSLOTH_RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
