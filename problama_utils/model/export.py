"""Take a trained policy along: talk with it, merge its adapter, write a GGUF file, put it on the hub.

The same calls serve a CPU (peft and transformers) and a card (unsloth's own methods, where it has them). A file or
folder appears under its name only when it is complete; an existing one is never overwritten.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from problama_utils import CourseError
from problama_utils.model.adapters import CONFIG, adapter_folder, read_config
from problama_utils.model.completions import complete, render
from problama_utils.model.weights import first_line, quiet_transformers
from problama_utils.setup.hub import clear_text_trouble, hub_endpoint, on_hub, scrubbed, token_place
from problama_utils.tasks.base import Task
from problama_utils.tasks.registry import get_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILES = ("*.safetensors", "*.json", "*.jinja", "*.gguf")  # for the hub: no pickle, and no model card of peft's, whose
# `base_model` may be a folder of this machine, which the hub refuses


def chat(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, task: str | Task = "riddles", *,
    few_shot: bool = True, max_new_tokens: int = 24, adapter: str | Path | None = None,
) -> str:
    """Return the policy's greedy answer to one problem in the reader's own words, asked as the course asks.

    Args:
        text: a riddle, or for "piqa" and "science" a question with its lettered options on lines of their own.
        task: whose system prompt and examples are used.
        few_shot: the slides' two examples first, as in a training with `few_shot`.
        adapter: folder of an adapter that vLLM, where it holds the weights, answers with; else the model's own does.
    """
    task = get_task(task)
    if not isinstance(text, str) or not text.strip():
        raise CourseError(f"text = {text!r}, expected a riddle or a question: write one.")
    messages = task.turns(f"{'Riddle' if task.name == 'riddles' else 'Question'}: {text.strip()}", few_shot=few_shot)
    if adapter is None or getattr(model, "vllm_engine", None) is None:
        return complete(model, tokenizer, [messages], max_new_tokens=max_new_tokens)[0]
    tokens = tokenizer(render(tokenizer, [messages])[0], add_special_tokens=False)["input_ids"]
    return _ask_vllm(model, tokens, max_new_tokens, adapter_folder(adapter))


def _ask_vllm(model: Any, tokens: list[int], max_new_tokens: int, adapter: Path) -> str:
    from vllm import SamplingParams

    how = SamplingParams(temperature=0.0, max_tokens=max_new_tokens)
    answers = model.fast_generate([{"prompt_token_ids": tokens}], how, use_tqdm=False,
                                  lora_request=model.load_lora(str(adapter)))
    return answers[0].outputs[0].text


def save_merged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> Path:
    """Write the policy with its adapter added to the weights, W + (α / r) · B A: a model that transformers alone reads.

    The policy in memory stays as it is: peft merges a copy, unsloth merges while it writes. Returns the folder.

    Raises:
        CourseError: no adapter, a base in 4 bits without unsloth, a folder that holds something, or too little disk.
    """
    from problama_utils.model.sizes import logical_size

    if not hasattr(model, "peft_config"):
        raise CourseError("The model has no adapter to merge: give the trained policy, or load one with load_adapter.")
    unsloth = hasattr(model, "save_pretrained_merged")
    if not unsloth and any(type(weight).__name__ == "Params4bit" for weight in model.parameters()):
        raise CourseError("The base model is in 4 bits, and merging into those would round the adapter away: load it "
                          "again with load_in_4bit=False, put the adapter on it with load_adapter, and merge that.")
    frozen = (weight for name, weight in model.named_parameters() if "lora_" not in name)
    needed = sum(logical_size(weight) * max(2, 0 if unsloth else weight.element_size()) for weight in frozen)
    with _written_whole(folder, needed * 1.05 + 50e6) as part:
        if unsloth:
            _merge_with_unsloth(model, tokenizer, part)
        else:
            with quiet_transformers():
                copy.deepcopy(model).merge_and_unload(safe_merge=True).save_pretrained(part)
            tokenizer.save_pretrained(part)
        if any(part.glob("*.bin")) or not any(part.glob("*.safetensors")):
            raise CourseError("The merged weights were not written as safetensors; nothing was kept.")
    return Path(folder)


def _merge_with_unsloth(model: Any, tokenizer: Any, part: Path) -> None:
    if "save_pretrained_merged" not in vars(model):  # peft hands on the base model's own, which knows no adapter
        from unsloth.save import patch_saving_functions

        patch_saving_functions(model)
    # None and not True: on a machine with two cores unsloth takes True for leave to write a pickle
    model.save_pretrained_merged(str(part), tokenizer, save_method="merged_16bit", safe_serialization=None)


def save_gguf(folder: str | Path, file: str | Path) -> Path:
    """Write the merged model in `folder` as one GGUF file, for llama.cpp, Ollama or LM Studio.

    Raises:
        CourseError: no merged Llama in the folder, a file that is there already or is not called .gguf, too little
            disk, or a model that `gguf` cannot write right.
    """
    from problama_utils.model.gguf import write_gguf

    folder, file = Path(os.path.expanduser(folder)), Path(os.path.expanduser(file))
    weights = list(folder.glob("*.safetensors")) if (folder / "config.json").is_file() else []
    if not weights:
        what = "an adapter" if (folder / CONFIG).exists() else "no model"
        raise CourseError(f"{str(folder)!r} holds {what}, expected a merged model: write one with save_merged first.")
    if file.suffix != ".gguf":
        raise CourseError(f"file = {str(file)!r}, expected a name that ends in .gguf.")
    with _written_whole(file, sum(path.stat().st_size for path in weights) * 1.05 + 50e6) as part:
        write_gguf(folder, part)
    return file


def push(folder: str | Path, name: str, *, private: bool = True) -> str:
    """Put a merged model or an adapter of a run on the Hugging Face hub and return its address.

    Args:
        name: of the repository, "mine/riddles-1b" or "riddles-1b" for the token's own account.
        private: only you can see it. A repository that is there already and is public is then refused.

    Raises:
        CourseError: nothing to upload, a name that is none, no token, or what the hub says, without the token.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    folder = Path(os.path.expanduser(folder))
    if not any(folder.glob("*.safetensors")):
        raise CourseError(f"{str(folder)!r} holds no safetensors file, expected a merged model or an adapter.")
    try:
        validate_repo_id(name or "")
    except HFValidationError:
        raise CourseError(f"name = {name!r}, expected owner/name of letters, digits, '-', '_' and '.'.") from None
    if not token_place():
        raise CourseError("There is no token to write to the hub with: make one with the right to write, and put it "
                          "into the environment variable HF_TOKEN (on Colab: the secret HF_TOKEN).")
    if trouble := clear_text_trouble():
        raise CourseError(trouble)
    try:
        api = HfApi(endpoint=hub_endpoint(), token=True)
        made = api.create_repo(name, private=private, exist_ok=True)
        public = private and not api.repo_info(made.repo_id).private
        if not public:
            if (folder / CONFIG).is_file():  # of an adapter; a path of this machine is nobody else's business
                config = read_config(folder)
                base = str(config.get("base_model_name_or_path") or "")
                config["base_model_name_or_path"] = base if on_hub(base) else Path(base).name
                api.upload_file(path_or_fileobj=json.dumps(config).encode(), path_in_repo=CONFIG, repo_id=made.repo_id)
            api.upload_folder(repo_id=made.repo_id, folder_path=folder, allow_patterns=list(FILES),
                              ignore_patterns=[CONFIG])
            return str(made)
        why = "it is there already and everybody can see it: choose another name, or say private=False"
    except Exception as error:  # the hub's library has many kinds, and each may quote the request
        why = f"{first_line(error)}; check the name and the token's rights"
    # raised out here, since a chained traceback would print what the hub echoes
    raise CourseError(scrubbed(f"{folder.name!r} could not be put on the hub as {name!r}: {why}."))


@contextmanager
def _written_whole(target: str | Path, needed: float) -> Iterator[Path]:
    """Give a place beside `target` to write to, and move it there when the block ends well; else leave nothing."""
    target = Path(os.path.expanduser(target))
    there = target.is_file() or (target.is_dir() and any(target.iterdir()))
    if there or target.is_symlink():
        raise CourseError(f"{str(target)!r} is there already and is never overwritten: choose another name.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < needed:
            raise CourseError(f"The disk of {str(target)!r} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} are "
                              "needed: free some space, or choose another disk.")
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as space:
            part = Path(space).resolve() / target.name
            yield part
            os.replace(part, target)
    except OSError as error:
        raise CourseError(f"{str(target)!r} could not be written ({error.strerror or error}): nothing was kept; "
                          "choose a place that you can write to.") from error
