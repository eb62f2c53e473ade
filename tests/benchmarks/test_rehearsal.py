"""The rehearsal at full size, as far as a CPU can tell: the checkpoint's layout, the miniature, the refusals."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

from problama_utils.config import course_root, get_profile
from problama_utils.model.memory import LLAMA_3_1_8B, NF4_BITS, Architecture

PROGRAM = course_root() / "benchmarks" / "rehearsal_8b.py"
spec = importlib.util.spec_from_file_location("rehearsal_8b", PROGRAM)
rehearsal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rehearsal)


@pytest.mark.slow  # imports torch and transformers
def test_the_checkpoint_has_every_tensor_of_llama_3_1_8b_and_no_other():
    """Names and shapes are those of transformers' own class, built on the meta device."""
    import torch
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(rehearsal.llama_config(LLAMA_3_1_8B))
    written = {name: shape for part in rehearsal.shards(LLAMA_3_1_8B) for name, shape in part.items()}
    assert written == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert sum(tensor.numel() for tensor in model.parameters()) == 8_030_261_248
    assert model.config.rope_parameters["rope_type"] == "llama3"
    assert model.config.rope_parameters["rope_theta"] == 500_000.0


def test_no_more_than_one_layer_or_matrix_is_held_at_a_time():
    import math

    largest = max(sum(math.prod(shape) for shape in part.values()) for part in rehearsal.shards(LLAMA_3_1_8B))
    assert 2 * largest < 1.2e9  # bytes in bf16


def test_tied_embeddings_are_written_once():
    tied = Architecture(64, 8, 16, 1, 2, 1, tie_word_embeddings=True)
    assert not any("lm_head" in name for part in rehearsal.shards(tied) for name in part)


def record(**rows):
    return {"miniature": False, "machine": "a machine", **rows}


def row(step):
    return {"way": "TRL + peft", "parameters": 8_030_261_248, "trainable": 167_772_160, "weights_gb": 5.7,
            "peak_gb": 9.1, "peak_of": "GPU, allocated", "step": step, "step_seconds": [9.0, step, step],
            "tokens_per_second": 80.0}  # fmt: skip


def test_the_table_compares_the_two_and_shows_a_failure_as_a_result():
    text = "\n".join(rehearsal.table(record(course=row(2.0), stock=row(5.0))))
    assert "stock / course = 2.5" in text and "8,030,261,248" in text and "MINIATURE" not in text
    text = "\n".join(rehearsal.table(record(course=row(2.0), stock={"error": "OutOfMemoryError: CUDA out of memory"})))
    assert "stopped: OutOfMemoryError" in text and "stock / course" not in text


@pytest.mark.slow
def test_without_a_gpu_full_size_is_refused_in_one_sentence():
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True,
                          env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})  # fmt: skip
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.count("\n") == 1 and "--miniature" in done.stderr


@pytest.mark.slow
def test_the_miniature_trains_both_ways_with_the_slides_adapter_and_writes_nothing(tmp_path):
    before = sorted((course_root() / "assets" / "runs").glob("rehearsal*"))
    command = [sys.executable, str(PROGRAM), "--miniature", "--steps", "2", "--scratch", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size = rehearsal.MINIATURE
    assert "MINIATURE, not Llama-3.1-8B" in done.stdout
    for kind in rehearsal.KINDS:
        line = next(line for line in done.stdout.splitlines() if line.startswith(f"{kind} "))
        numbers = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]{5,}", line)]
        assert numbers == [size.parameters, size.lora_parameters(get_profile("slides").lora.r)]
    assert re.search(r"stock / course = \d+\.\d", done.stdout)
    assert not list(tmp_path.iterdir()), "the scratch folder is emptied"
    assert sorted((course_root() / "assets" / "runs").glob("rehearsal*")) == before


@pytest.mark.slow
def test_a_worker_trains_in_nf4_within_the_slides_window(tmp_path):
    rehearsal.write_checkpoint(rehearsal.MINIATURE, tmp_path / "checkpoint", seed=1)
    command = [sys.executable, str(PROGRAM), "--miniature", "--steps", "1", "--worker", "stock", "--folder",
               str(tmp_path / "checkpoint")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    measured = json.loads(next(line[7:] for line in done.stdout.splitlines() if line.startswith("RESULT ")))
    slides, size = get_profile("slides"), rehearsal.MINIATURE
    assert measured["profile"]["max_seq_length"] == slides.max_seq_length == 512
    assert measured["profile"]["lora"]["r"] == 64 and measured["profile"]["riddles"]["num_generations"] == 8
    assert measured["profile"]["load_in_4bit"] is True
    # peft's prepare_model_for_kbit_training turns what is not quantised (embedding, head, norms) to fp32
    rest = size.parameters - size.projection_parameters
    counted = size.projection_parameters * NF4_BITS / 8 + 4 * rest + 4 * size.lora_parameters(64)
    assert measured["weights_gb"] == pytest.approx(counted / 1e9, rel=0.02)
