"""Notebooks 02, 03, 04 and 06 on profile colab-t4, with the embedded model in the 8B's place; see `pretend_card`.

The course's own runner executes copies of them, in kernels of the lane's Python (`lane.py kernel`). What differs from a
reader's card: the profile's lengths (`lane.notebook_profile`), and PROBLAMA_DATA with a few of the course's problems,
since the notebooks ask all that are held out.
"""

import json

import pytest
from safetensors.torch import load_file

from problama_utils.config import course_root
from problama_utils.model import weights as embedded_model
from problama_utils.monitoring import run_folder
from problama_utils.tasks.sources import assets_folder
from tools.course import numbered_notebooks
from tools.notebook_run import Progress, execute

pytestmark = pytest.mark.slow
EXECUTED = ("02", "03", "04", "06")
# Appended to each copy: what its policies and TRL's trainer were when it had come to its end.
PROOF = """\
import json, peft, trl
held = {name: value for name, value in globals().items() if isinstance(value, peft.PeftModel)}
print(json.dumps({"trainer": trl.GRPOTrainer.__name__, **{
    name: value.get_base_model().generate.__name__ for name, value in held.items()}}))
"""


def few_problems(folder):
    """Write the first problems of every split and level into files of a reader's own."""
    folder.mkdir()
    for task, each in (("riddles", 4), ("physical", 2), ("science", 4)):
        lines = (assets_folder() / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
        by_level = {}
        for line in lines:
            row = json.loads(line)
            by_level.setdefault((row["split"], row["difficulty"]), []).append(line)
        kept = [line for lines in by_level.values() for line in lines[:each]]
        (folder / f"{task}.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")


def copies(folder):
    """Copy the notebooks to a folder of their own, the proof as their last cell, and return their paths."""
    folder.mkdir()
    for path in numbered_notebooks(course_root()):
        if path.stem[:2] in EXECUTED:
            notebook = json.loads(path.read_text(encoding="utf-8"))
            notebook["cells"].append({"cell_type": "code", "execution_count": None, "id": "proof", "metadata": {},
                                      "outputs": [], "source": PROOF})
            (folder / path.name).write_text(json.dumps(notebook), encoding="utf-8")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A reader's folders: copies of the notebooks, data, runs, a cache that has the embedded model, a kernel."""
    home = tmp_path_factory.mktemp("gpu-lane-notebooks")
    few_problems(home / "data")
    model = embedded_model.embedded_model_dir()
    (home / "cache").mkdir()
    (home / "cache" / model.name).symlink_to(model, target_is_directory=True)
    return home


@pytest.fixture(scope="module")
def said(home, lane_python):
    """What each notebook printed, by its number; `notebook_run` raises where a cell fails."""
    kernels = home / "jupyter" / "kernels" / "python3"
    kernels.mkdir(parents=True)
    command = [str(lane_python), str(course_root() / "tests" / "gpu_lane" / "lane.py"), "kernel", "-f",
               "{connection_file}"]
    (kernels / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "lane", "language": "python"}))
    variables = {"PROBLAMA_PROFILE": "colab-t4", "PROBLAMA_RUNS": home / "runs", "PROBLAMA_DATA": home / "data",
                 "PROBLAMA_HOME": home / "cache", "PROBLAMA_QUIET": "1", "JUPYTER_PATH": home / "jupyter",
                 "PYTHONPATH": course_root()}
    paths, outputs = copies(home / "notebooks"), {}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, str(value))
        for name in ("PROBLAMA_MODEL", "PROBLAMA_DTYPE", "UNSLOTH_COMPILE_LOCATION"):
            patch.delenv(name, raising=False)
        for number, path in enumerate(paths, 1):
            progress = Progress(number, len(paths), path.stem, "on the pretend card")
            notebook, measured = execute(path, progress)
            progress.done(*measured.values())
            found = [output for cell in notebook.cells for output in cell.get("outputs", [])]
            outputs[path.stem[:2]] = "".join(output.text for output in found if output.get("name") == "stdout")
    return outputs


def proof(text):
    return json.loads(text.splitlines()[-1])


def test_every_notebook_runs_to_its_end_on_the_profile_of_a_small_card(said):
    assert sorted(said) == sorted(EXECUTED)
    assert all("profile colab-t4: " in text and "profile cpu" not in text for text in said.values())


def test_the_policies_are_unsloths_and_so_is_the_trainer(said):
    assert {number: proof(text) for number, text in said.items()} == {
        "02": {"trainer": "UnslothGRPOTrainer", "policy": "generate", "policy4": "unsloth_fast_generate"},
        "03": {"trainer": "UnslothGRPOTrainer", "model": "unsloth_fast_generate"},
        "04": {"trainer": "UnslothGRPOTrainer", "model": "unsloth_fast_generate"},
        "06": {"trainer": "UnslothGRPOTrainer", "policy": "unsloth_fast_generate"},
    }


def test_the_policy_in_four_bits_is_in_four_bits(said):
    assert "; 210 layers in 4 bits" in said["02"]  # seven in each of 30
    assert "420 tensors have a gradient, all in the adapter; B: all above 0" in said["02"]


@pytest.mark.parametrize("task", ["riddles", "piqa"])
def test_a_training_leaves_a_whole_run_whose_adapter_has_learnt(said, home, task):
    run = home / "runs" / task
    record = json.loads((run / run_folder.RUN_FILE).read_text(encoding="utf-8"))
    assert run_folder.is_finished(run)
    assert (record["profile"]["name"], record["profile"]["backend"]) == ("colab-t4", "unsloth")
    assert [row["step"] for row in run_folder.read_table(run / run_folder.LOG_FILE)] == ["1", "2", "3"]
    weights = load_file(run / run_folder.ADAPTER_FOLDER / "adapter_model.safetensors")
    assert any(weight.abs().sum() > 0 for name, weight in weights.items() if "lora_B" in name)


def test_the_evaluation_asks_both_trained_adapters(said):
    for name, task in (("riddle-tuned", "riddles"), ("PIQA-tuned", "piqa")):
        assert f" MB in {task}/adapter (your own run)" in said["06"] and f"asked: {name}" in said["06"]
    assert "24 answers to 8 different prompts; every policy saw the same ones" in said["06"]


def test_nothing_is_written_beside_the_notebooks(said, home):
    assert sorted(path.stem[:2] for path in (home / "notebooks").iterdir()) == sorted(EXECUTED)
    assert (home / "cache" / "unsloth_compiled_cache").is_dir()
