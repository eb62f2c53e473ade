"""Drift guard: every call into unsloth, TRL, peft, bitsandbytes, transformers and datasets fits what is installed.

An argument that a release renamed or removed fails here, by file and line, before a notebook meets it. Nothing is
skipped: what the reader cannot decide is in `UNDECIDED` with its reason, and what is not there fails.
"""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from drift import ROOT, Reader, sources
from signatures import LIBRARIES, UNSLOTH_RECORD, bind, unsloth_parameters, used_keywords

from problama_utils.setup import install

# A `**mapping` that hides its keys: (file, callee as written) → why it cannot hide a wrong argument.
UNDECIDED = {
    ("problama_utils/model/completions.py", "model.generate"):
        "**encoded is the tokenizer's own input_ids, attention_mask",
    ("notebooks/02_qlora_setup.ipynb", "policy"): "**batch is the tokenizer's own input_ids, attention_mask",
    ("tests/model/test_memory.py", "LlamaConfig"): "the fields of our Architecture; the test itself builds the model",
    ("problama_utils/model/sizes.py", "LlamaConfig"): "the fields of our Architecture; the test builds the model",
    ("tests/engine/test_batching.py", "with_lora"): "pytest's parameters; the test itself attaches the adapter",
    ("tests/gpu_lane/pretend_card.py", "load"): "what the course passed on, and four that the lane's run itself checks",
    ("tests/gpu_lane/pretend_card.py", "attach"): "what the course passed on; the lane's run itself checks it",
}


@pytest.fixture(scope="module")
def texts():
    return sources()


@pytest.fixture(scope="module")
def reader(texts):
    return Reader(texts)


def test_every_import_and_method_that_is_named_exists(reader):
    assert reader.broken == []


def test_every_call_fits_the_installed_signatures(reader):
    problems = [f"{call.file}:{call.line} {call.text}: {found}" for call in reader.calls if (found := call.problem())]
    assert not problems, "\n".join(problems)


def test_what_cannot_be_decided_is_listed_with_its_reason_and_nothing_else_is(reader):
    hidden = {(call.file, call.text) for call in reader.calls if call.hidden}
    assert hidden - set(UNDECIDED) == set(), "list these in UNDECIDED with a reason, or write their arguments out"
    assert set(UNDECIDED) - hidden == set(), "these are decided by now: take them out of UNDECIDED"


@pytest.mark.parametrize("library", ["unsloth", "trl", "peft", "bitsandbytes", "transformers", "datasets"])
def test_each_library_is_watched(reader, library):
    assert any(call.target.startswith(library + ".") for call in reader.calls)


# The calls that a course on GRPO depends on; if the reader lost sight of one, its silence would mean nothing.
@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("unsloth.FastLanguageModel.from_pretrained", "gpu_memory_utilization"),
        ("unsloth.FastLanguageModel.get_peft_model", "use_gradient_checkpointing"),
        ("transformers.AutoModelForCausalLM.from_pretrained", "quantization_config"),
        ("transformers.BitsAndBytesConfig", "bnb_4bit_use_double_quant"),
        ("peft.prepare_model_for_kbit_training", "use_gradient_checkpointing"),
        ("peft.LoraConfig", "target_modules"),
        ("trl.GRPOConfig", "num_generations"),
        ("trl.GRPOTrainer", "reward_funcs"),
        (".apply_chat_template", "add_generation_prompt"),
        ("transformers.AutoTokenizer.from_pretrained", "gguf_file"),
        ("datasets.load_dataset", "split"),
        ("bitsandbytes.functional.quantize_4bit", "compress_statistics"),
        ("bitsandbytes.nn.Linear4bit", "quant_type"),
    ],
)
def test_the_calls_that_matter_are_seen_with_their_arguments(reader, target, name):
    shipped = [call for call in reader.calls if not call.file.startswith("tests/")]
    seen = [call for call in shipped if call.target.endswith(target)]
    assert any(name in call.names for call in seen), [call.names for call in seen]


# One wrong argument in one place of the real sources, by every route that a call can take.
MUTATIONS = [
    ("fast_inference=samples_with_vllm(profile)", "fast_inferences=samples_with_vllm(profile)"),
    ("random_state=seed", "random_seed=seed"),
    ('"use_safetensors": True', '"use_safe_tensors": True'),
    ('options["quantization_config"]', 'options["quantisation_config"]'),
    ("lora_alpha=lora.lora_alpha, task_type", "alpha=lora.lora_alpha, task_type"),
    ("num_generations=settings", "num_generation=settings"),
    ("processing_class=tokenizer", "tokenizer=tokenizer"),
    ("Dataset.from_list(", "Dataset.from_lists("),
    ("from trl import GRPOConfig", "from trl import GRPOConfigs as GRPOConfig"),
    ('"gguf_file": gguf.name', '"gguf": gguf.name'),
    ("LlamaForCausalLM(config)", "LlamaForCausalLM()"),
    ("max_new_tokens=", "max_new_token="),
    ("compress_statistics=twice", "compress_stats=twice"),
    ("bnb.nn.Linear4bit", "bnb.nn.Linear4bits"),
]


@pytest.mark.parametrize(("right", "wrong"), MUTATIONS, ids=[mutation[1] for mutation in MUTATIONS])
def test_one_wrong_argument_is_found(texts, right, wrong):
    files = [name for name, text in texts.items() if right in text and not name.startswith("tests/")]
    assert files, f"{right!r} is nowhere any more: choose another place for this check"
    changed = (Reader({**texts, file: texts[file].replace(right, wrong)}, only=file) for file in files)
    assert any(reader.broken or [call for call in reader.calls if call.problem()] for reader in changed)


def test_names_that_only_kwargs_would_swallow_are_told_from_those_that_are_used():
    loading = "transformers.AutoModelForCausalLM.from_pretrained"
    assert bind(loading, 1, ("dtype", "quantization_config", "gguf_file", "trust_remote_code")) is None
    assert "'load_in_four_bits'" in bind(loading, 1, ("load_in_four_bits",))
    assert bind("transformers.LlamaForCausalLM.generate", 0, ("input_ids", "max_new_tokens", "do_sample")) is None
    assert "'max_tokens'" in bind("transformers.LlamaForCausalLM.generate", 0, ("input_ids", "max_tokens"))
    assert used_keywords("def f(**kwargs): other.pop('x')") == set()


def test_missing_and_surplus_arguments_are_found_too():
    assert "required" in bind("peft.get_peft_model", 1, ())
    assert "too many" in bind("transformers.set_seed", 5, ())


def test_the_record_of_unsloths_parameters_is_of_the_release_that_is_installed_on_a_gpu():
    pins = dict(pin.split("==") for pin in install.UNSLOTH)
    assert json.loads(UNSLOTH_RECORD.read_text())["wheel"].startswith(f"unsloth-{pins['unsloth']}-")


@pytest.fixture(scope="module")
def unsloth_wheels(tmp_path_factory):
    """unsloth's and unsloth_zoo's pinned wheels, by pip, without their dependencies (31 MB)."""
    folder = tmp_path_factory.mktemp("unsloth")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*command, *install.UNSLOTH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return sorted(folder.glob("unsloth-*.whl"))[0], sorted(folder.glob("unsloth_zoo-*.whl"))[0]


@pytest.mark.slow
def test_unsloths_own_source_says_what_the_record_says(unsloth_wheels):
    record = json.loads(UNSLOTH_RECORD.read_text())
    assert record["wheel"] == unsloth_wheels[0].name
    assert record["parameters"] == unsloth_parameters(*unsloth_wheels)


def test_the_versions_that_were_bound_are_the_pinned_ones():
    pins = install.requirements()
    assert {name: f"{name}=={version(name)}" for name in LIBRARIES if name in pins} == {
        name: pin for name, pin in pins.items() if name in LIBRARIES}


def test_the_reader_covers_every_notebook_and_module():
    folders = ("problama_utils", "benchmarks", "tools", "tests", "notebooks")
    on_disk = {path.relative_to(ROOT).as_posix() for folder in folders
               for kind in ("*.py", "*.ipynb") for path in Path(ROOT / folder).rglob(kind)
               if ".ipynb_checkpoints" not in path.parts}
    assert on_disk == set(sources())
