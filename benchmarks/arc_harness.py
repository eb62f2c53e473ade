"""What `arc_parity` and `arc_speed` share: ARC-Challenge through lm-evaluation-harness, on the same model and items.

The harness reads a local file (a JSON lines file made for the run in a temporary folder) through its own task file
`arc_challenge`, of which only the place of the data is overridden.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs from a checkout that is not installed

HARNESS = "0.4.13"
TASK = "arc_challenge"


def need_harness() -> str:
    """Return the harness's version; end in one sentence where it cannot be imported."""
    try:
        from lm_eval import simple_evaluate  # noqa: F401

        return version("lm_eval")
    except (ImportError, PackageNotFoundError) as error:
        raise SystemExit(f"lm-evaluation-harness cannot be imported here ({error}): pip install lm_eval=={HARNESS}, "
                         "best into an environment of its own, and run this with that environment's python.") from None


def harness_documents(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return questions in the form in which the hub serves ARC."""
    return [{"id": row["id"], "question": row["question"], "answerKey": row["answer"],
             "choices": {"text": list(row["choices"]), "label": list(row["labels"])}} for row in rows]


def make_task(rows: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """Write the questions to a file and return the harness's own task, pointed at that file."""
    import lm_eval
    import yaml
    from lm_eval.tasks import TaskManager

    file = folder / "test.jsonl"
    lines = [json.dumps(document, ensure_ascii=False) + "\n" for document in harness_documents(rows)]
    file.write_text("".join(lines), encoding="utf-8")
    own = Path(lm_eval.__file__).parent / "tasks" / "arc"
    config = {key: value for name in ("arc_easy", TASK)  # the second includes the first
              for key, value in yaml.safe_load((own / f"{name}.yaml").read_text(encoding="utf-8")).items()}
    local = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {"test": str(file)}}}
    dropped = ("include", "tag", "training_split", "validation_split")
    config = {key: value for key, value in config.items() if key not in dropped} | local
    return TaskManager().load([config])


def run_harness(
    model: Any, tokenizer: Any, task: Any, *, batch_size: int = 1, system: str | None = None
) -> tuple[list[dict[str, Any]], float]:
    """Return the harness's samples in the order of the questions, and the seconds that its evaluation took.

    Args:
        model: the very model that we score with.
        tokenizer: the model's.
        task: from `make_task`.
        batch_size: the harness's; 1 is its default.
        system: a system prompt, put into a chat; None asks plainly.
    """
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device="cpu")
    chat = {"system_instruction": system, "apply_chat_template": True} if system else {}
    begin = time.perf_counter()
    found = evaluate(harness, task, bootstrap_iters=0, log_samples=True, **chat)
    seconds = time.perf_counter() - begin
    return sorted(found["samples"][TASK], key=lambda sample: sample["doc_id"]), seconds


def sample_scores(sample: Mapping[str, Any]) -> list[float]:
    """Return the log-likelihood of every choice of one of the harness's samples."""
    return [float(response[0]) if isinstance(response, list | tuple) else float(response)
            for response in sample["filtered_resps"]]


def base_model(dtype: str) -> tuple[Any, Any]:
    """Return the course's base model and tokenizer in one precision ("float32" or "bfloat16")."""
    import torch

    from problama_utils.config import get_profile
    from problama_utils.model.loading import load_policy

    model, tokenizer = load_policy(get_profile("cpu"), seed=0)
    return model.to(getattr(torch, dtype)).eval(), tokenizer


def machine() -> dict[str, Any]:
    """Return what a timing depends on, without a name of this machine."""
    import os
    import platform

    import torch

    from problama_utils.setup.machine import cores

    return {"system": f"{platform.system()} {platform.machine()}", "cores": cores(),
            "threads": torch.get_num_threads(), "load": [round(value, 2) for value in os.getloadavg()],
            "versions": {name: version(name) for name in ("torch", "transformers", "lm_eval")}}
