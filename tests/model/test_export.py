"""A trained policy taken along: merged, as GGUF, on the hub, in a chat; whole or not at all."""

import json
import os
import shutil
import subprocess
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

torch = pytest.importorskip("torch")

from signatures import UNSLOTH_RECORD  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from problama_utils import CourseError  # noqa: E402
from problama_utils.config import get_profile  # noqa: E402
from problama_utils.model import export  # noqa: E402
from problama_utils.model.loading import load_adapter, load_policy  # noqa: E402
from problama_utils.model.weights import quiet_transformers  # noqa: E402
from problama_utils.tasks.registry import TASKS  # noqa: E402
from problama_utils.tasks.science import science_messages  # noqa: E402

SECRET = "hf_" + "Sesame" * 6
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LLAMA_3_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def adapted(model):
    """The model with an adapter whose B is random as well, so that merging changes every projection."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    shape = LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules=SEVEN, task_type="CAUSAL_LM")
    return get_peft_model(model, shape).eval()


@pytest.fixture
def policy_and_tokenizer(tiny_model_dir, monkeypatch):
    """The tiny Llama in fp32 with an adapter, and a tokenizer that has merges, without which there is no GGUF."""
    monkeypatch.setenv("PROBLAMA_MODEL", str(tiny_model_dir))
    monkeypatch.setenv("PROBLAMA_DTYPE", "float32")
    model, tokenizer = load_policy(get_profile("cpu"), seed=0)
    return adapted(model), with_merges(tokenizer)


def with_merges(tokenizer):
    """The tokenizer with "he" and "ee" as tokens of their own in the place of its last two letters."""
    from tokenizers import Tokenizer

    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = parts["model"]["vocab"]
    for piece in ("he", "ee"):  # two, since transformers' reader takes a list of one for no list
        vocabulary[piece] = vocabulary.pop(max(set(vocabulary) - {"he"}, key=vocabulary.get))
    parts["model"]["merges"] = [["h", "e"], ["e", "e"]]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(parts))
    tokenizer.bos_token = "<|im_start|>"  # transformers' reader takes a GGUF file without one for broken
    return tokenizer


def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 60)[None]).logits


@pytest.fixture
def merged(policy_and_tokenizer, tmp_path):
    return export.save_merged(*policy_and_tokenizer, tmp_path / "merged")


def test_a_merged_model_needs_transformers_alone_and_says_what_the_adapter_said(policy_and_tokenizer, tmp_path):
    model, tokenizer = policy_and_tokenizer
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    said, trains = logits(model), {name for name, weight in model.named_parameters() if weight.requires_grad}
    folder = export.save_merged(model, tokenizer, tmp_path / "new" / "merged")
    alone = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(alone), said, atol=1e-5, rtol=1e-5)
    with model.disable_adapter():
        assert (logits(model) - said).abs().max() > 0.01  # the adapter does say something of its own
    for name, weight in model.named_parameters():  # and the policy in memory goes on as it was
        assert torch.equal(weight, before[name]) and weight.requires_grad == (name in trains)
    assert torch.equal(logits(model), said)
    assert AutoTokenizer.from_pretrained(folder)("the bee").input_ids == tokenizer("the bee").input_ids
    names = {path.name for path in folder.iterdir()}
    assert "model.safetensors" in names and not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    assert not [name for name in names if "adapter" in name] and [p.name for p in folder.parent.iterdir()] == ["merged"]


def test_no_file_of_a_merged_model_names_a_path_of_this_machine(merged, tiny_model_dir):
    for path in merged.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert str(tiny_model_dir) not in text and str(merged.parent) not in text, path.name


def test_of_two_adapters_the_active_one_is_merged(policy_and_tokenizer, tmp_path):
    from peft import LoraConfig

    model, tokenizer = policy_and_tokenizer
    shape = LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=SEVEN, task_type="CAUSAL_LM")
    model.add_adapter("second", shape)
    model.set_adapter("second")
    alone = AutoModelForCausalLM.from_pretrained(export.save_merged(model, tokenizer, tmp_path / "merged"))
    torch.testing.assert_close(logits(alone), logits(model), atol=1e-5, rtol=1e-5)


def full(folder):
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")


@pytest.mark.parametrize(("make", "why"), [
    (full, "there already"),
    (lambda place: place.write_text("mine"), "there already"),
    (lambda place: place.symlink_to(place.parent), "there already"),
])
@pytest.mark.parametrize("kind", ["merged", "gguf"])
def test_what_is_there_already_stays(policy_and_tokenizer, merged, tmp_path, make, why, kind):
    place = tmp_path / "taken.gguf"
    make(place)
    with pytest.raises(CourseError, match=why):
        if kind == "merged":
            export.save_merged(*policy_and_tokenizer, place)
        else:
            export.save_gguf(merged, place)
    assert place.is_symlink() or (place.read_text() if place.is_file() else (place / "mine.txt").read_text()) == "mine"


def test_an_empty_folder_may_be_filled(policy_and_tokenizer, tmp_path):
    (tmp_path / "empty").mkdir()
    assert (export.save_merged(*policy_and_tokenizer, tmp_path / "empty") / "config.json").exists()


def test_a_place_below_a_file_is_refused(policy_and_tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CourseError, match="could not be written"):
        export.save_merged(*policy_and_tokenizer, tmp_path / "file" / "merged")


def test_too_little_disk_is_said_before_anything_is_written(policy_and_tokenizer, merged, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=10_000))
    for write in (lambda: export.save_merged(*policy_and_tokenizer, tmp_path / "m2"),
                  lambda: export.save_gguf(merged, tmp_path / "m.gguf")):
        with pytest.raises(CourseError, match="GB free"):
            write()
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_save_that_fails_half_way_leaves_nothing(policy_and_tokenizer, merged, tmp_path, monkeypatch):
    from problama_utils.model import gguf as gguf_llama

    def half(folder, file):
        file.write_bytes(b"GGUF")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_llama, "write_gguf", half)
    with pytest.raises(CourseError, match="No space left"):
        export.save_gguf(merged, tmp_path / "m.gguf")
    monkeypatch.setattr(type(policy_and_tokenizer[1]), "save_pretrained", lambda *_, **__: half(None, tmp_path / "x"))
    with pytest.raises(CourseError, match="No space left"):
        export.save_merged(*policy_and_tokenizer, tmp_path / "m2")
    assert {path.name for path in tmp_path.iterdir()} == {"merged", "x"}


def test_a_bare_model_and_a_base_in_4_bits_are_refused(policy_and_tokenizer, tmp_path):
    model, tokenizer = policy_and_tokenizer
    with pytest.raises(CourseError, match="no adapter to merge"):
        export.save_merged(
            AutoModelForCausalLM.from_config(model.config), tokenizer, tmp_path / "m")
    layer = model.base_model.model.model.layers[0].mlp.up_proj.base_layer
    layer.weight = type("Params4bit", (torch.nn.Parameter,), {})(layer.weight.data, requires_grad=False)
    with pytest.raises(CourseError, match="4 bits"):
        export.save_merged(model, tokenizer, tmp_path / "m")


@pytest.mark.parametrize("pickle", [False, True])
def test_unsloths_own_merge_is_taken_where_the_model_has_one(policy_and_tokenizer, tmp_path, pickle):
    model, tokenizer = policy_and_tokenizer
    calls = []

    def theirs(folder, tokenizer, save_method, safe_serialization):
        calls.append((save_method, safe_serialization))
        model.get_base_model().config.save_pretrained(folder)
        (tmp_path / folder / ("model.bin" if pickle else "model.safetensors")).write_bytes(b"")

    model.save_pretrained_merged = theirs
    if pickle:
        with pytest.raises(CourseError, match="not written as safetensors"):
            export.save_merged(model, tokenizer, tmp_path / "m")
        assert not (tmp_path / "m").exists()
    else:
        assert (export.save_merged(model, tokenizer, tmp_path / "m") / "model.safetensors").exists()
    assert calls == [("merged_16bit", None)]
    theirs = json.loads(UNSLOTH_RECORD.read_text())["parameters"]["save.unsloth_generic_save_pretrained_merged"]
    assert theirs[1:4] == ["save_directory", "tokenizer", "save_method"] and "safe_serialization" in theirs


def read_back(file, dtype):
    with quiet_transformers():
        return (AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype).eval(),
                AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name))


def differing(model, other):
    mine, others = model.state_dict(), other.state_dict()
    return [name for name in mine | others if name not in mine or not torch.equal(mine[name], others[name])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_holds_the_same_weights_and_words(policy_and_tokenizer, tmp_path, dtype, tied):
    model, tokenizer = policy_and_tokenizer
    plain = model.merge_and_unload()
    if not tied:
        plain.config.tie_word_embeddings = False
        plain.lm_head.weight = torch.nn.Parameter(torch.randn_like(plain.lm_head.weight))
    plain.to(dtype).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    file = export.save_gguf(tmp_path / "m", tmp_path / "m.gguf")
    again, words = read_back(file, dtype)
    want = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=dtype)
    assert differing(want, again) == []
    assert torch.equal(logits(again), logits(want))
    text = "<|im_start|>The bee, 12 of them: naïve?\n\n  Ünïcödé 🐝<|im_end|>"
    assert words(text).input_ids == tokenizer(text).input_ids
    assert words.chat_template == tokenizer.chat_template


def test_llama_3_1s_stretched_wavelengths_are_in_the_file(merged, tmp_path):
    from gguf import GGUFReader

    config = json.loads((merged / "config.json").read_text())
    config["rope_parameters"] = LLAMA_3_ROPE
    (merged / "config.json").write_text(json.dumps(config))
    reader = GGUFReader(export.save_gguf(merged, tmp_path / "m.gguf"))
    factors = next(tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight")
    size = config["hidden_size"] // config["num_attention_heads"]
    for i, factor in enumerate(factors):  # arXiv:2407.21783 names no formula; this is Meta's, by wavelength in tokens
        wavelength = 2 * torch.pi * 500000.0 ** (2 * i / size)
        smooth = (64 / wavelength - 1.0) / (4.0 - 1.0)
        expected = 1.0 if wavelength < 64 / 4 else 8.0 if wavelength > 64 else 1 / ((1 - smooth) / 8 + smooth)
        assert factor == pytest.approx(expected, rel=1e-5)


def edit(name, **changes):
    def change(folder):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return change


def weights(change):
    def rewrite(folder):
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return rewrite


def spoil(tensors):
    tensors["model.norm.weight"][0] = float("nan")


UP = "model.layers.1.mlp.up_proj.weight"
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize(("change", "why"), [
    (edit("config.json", model_type="qwen2"), "model_type"),
    (edit("config.json", hidden_act="gelu"), "hidden_act"),
    (edit("config.json", attention_bias=True), "attention_bias"),
    (edit("config.json", mlp_bias=True), "mlp_bias"),
    (edit("config.json", rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}), "linear"),
    (edit("config.json", num_hidden_layers=1), "not part of its architecture"),
    (edit("config.json", num_hidden_layers=3), "lacks 9 weights"),
    (edit("config.json", vocab_size=100), "has .* tokens and the model"),
    (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
    (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot be read"),
    (weights(lambda tensors: tensors.pop(UP)), "lacks 1 weights"),
    (weights(lambda tensors: tensors.update({UP: tensors[UP][:-1].clone()})), "another shape"),
    (weights(lambda tensors: tensors.update({"extra.weight": torch.zeros(2)})), "not part"),
    (weights(spoil), "not finite"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "cannot be read"),
    (edit("tokenizer.json", pre_tokenizer=None), "byte-level BPE"),
    (edit("tokenizer.json", pre_tokenizer={"type": "Whitespace"}), "byte-level BPE"),
    (edit("tokenizer.json", pre_tokenizer={**BYTES, "use_regex": True, "add_prefix_space": True}), "byte-level BPE"),
    (edit("tokenizer.json", pre_tokenizer=BYTES), "byte-level BPE"),
    (edit("tokenizer.json", normalizer={"type": "NFC"}), "byte-level BPE"),
])
def test_what_cannot_be_written_right_is_refused_and_nothing_is_left(merged, tmp_path, change, why):
    change(merged)
    with pytest.raises(CourseError, match=why):
        export.save_gguf(merged, tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_tokenizer_without_merges_is_refused(merged, tmp_path):
    parts = json.loads((merged / "tokenizer.json").read_text())
    parts["model"]["merges"] = []
    (merged / "tokenizer.json").write_text(json.dumps(parts))
    with pytest.raises(CourseError, match="with merges"):
        export.save_gguf(merged, tmp_path / "m.gguf")


@pytest.mark.parametrize(("steps", "name"), [
    ([{**BYTES, "use_regex": True}], "gpt-2"),
    ([{"type": "Digits", "individual_digits": True}, {**BYTES, "use_regex": True}], "smollm"),
])
def test_llama_cpp_is_told_how_a_text_is_cut(merged, tmp_path, steps, name):
    from gguf import GGUFReader

    edit("tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": steps})(merged)
    file = export.save_gguf(merged, tmp_path / "m.gguf")
    assert GGUFReader(file).fields["tokenizer.ggml.pre"].contents() == name


@pytest.mark.parametrize(("folder", "file", "why"), [
    ("nowhere", "m.gguf", "no model"), ("adapter", "m.gguf", "an adapter"), ("merged", "m.bin", "ends in .gguf"),
    ("merged", "m", "ends in .gguf"),
])
def test_a_gguf_needs_a_merged_model_and_its_ending(merged, tmp_path, folder, file, why):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(CourseError, match=why):
        export.save_gguf(tmp_path / folder, tmp_path / file)


@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("few_shot", [True, False])
def test_a_chat_asks_as_the_course_asks(monkeypatch, policy_and_tokenizer, task, few_shot):
    asked = []
    monkeypatch.setattr(export, "complete", lambda *given, **_: asked.extend(given[2]) or ["a bee"])
    text = "What is heavier?\nOption A: lead\nOption B: down"
    assert export.chat(*policy_and_tokenizer, f" {text}\n", task, few_shot=few_shot) == "a bee"
    rows = {"riddles": lambda: TASKS["riddles"].messages({"riddle": text}, few_shot=few_shot),
            "piqa": lambda: TASKS["piqa"].messages({"goal": "What is heavier?", "sol1": "lead", "sol2": "down"},
                                                  few_shot=few_shot),
            "science": lambda: science_messages({"question": text, "labels": [], "choices": []})}
    assert asked == [rows[task]()]


def test_a_chat_answers_with_the_policy_that_it_is_given(policy_and_tokenizer):
    model, tokenizer = policy_and_tokenizer
    text = "What has a trunk?"
    answer = export.chat(model, tokenizer, text, max_new_tokens=8)
    with model.disable_adapter():
        assert export.chat(model, tokenizer, text, max_new_tokens=8) != answer
    assert export.chat(model, tokenizer, text, max_new_tokens=8) == answer


@pytest.mark.parametrize(("text", "task"), [
    ("", "riddles"), (" \n", "riddles"), (None, "riddles"), (7, "piqa"), ("a", "Riddles"), ("a", ""), ("a", None),
    ("a", ["riddles"]), ("a", "poems"), (["a"], "science"),
])
def test_a_chat_without_a_text_or_with_an_unknown_task_is_refused(policy_and_tokenizer, text, task):
    with pytest.raises(CourseError, match="expected|There is no task"):
        export.chat(*policy_and_tokenizer, text, task)


def test_where_vllm_holds_the_weights_it_answers_with_the_adapters_folder(monkeypatch, policy_and_tokenizer, tmp_path):
    """A double of vLLM, which needs a card: the call's form is that of LLM.generate from 0.11 to 0.27.1."""
    model, tokenizer = policy_and_tokenizer
    model.save_pretrained(tmp_path / "adapter")
    calls = {}
    sampling = types.SimpleNamespace(SamplingParams=lambda **given: given)
    monkeypatch.setitem(sys.modules, "vllm", sampling)

    def generate(prompts, sampling_params=None, *, use_tqdm=True, lora_request=None):
        calls.update(prompts=prompts, how=sampling_params, lora=lora_request)
        return [types.SimpleNamespace(outputs=[types.SimpleNamespace(text="a bee")])]

    model.vllm_engine, model.fast_generate, model.load_lora = object(), generate, lambda folder: ("lora", folder)
    assert export.chat(model, tokenizer, "It stings?", adapter=tmp_path / "adapter", max_new_tokens=5) == "a bee"
    text = tokenizer.apply_chat_template(TASKS["riddles"].messages({"riddle": "It stings?"}), tokenize=False,
                                         add_generation_prompt=True)
    assert calls == {"prompts": [{"prompt_token_ids": tokenizer(text, add_special_tokens=False).input_ids}],
                     "how": {"temperature": 0.0, "max_tokens": 5}, "lora": ("lora", str(tmp_path / "adapter"))}
    with pytest.raises(CourseError, match="no adapter"):
        export.chat(model, tokenizer, "It stings?", adapter=tmp_path / "nothing")


class Hub(BaseHTTPRequestHandler):
    """Enough of the hub for one upload: it makes a repository, tells whether it is private and takes one commit."""

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.command, self.path, self.headers.get("Authorization", ""), body))
        status, reply = 200, {}
        if self.path == "/api/repos/create":
            status, reply = self.server.made
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            reply = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        elif "/commit/" in self.path:
            reply = {"success": True, "commitUrl": f"{self.server.url}/me/bees/commit/1", "commitOid": "1" * 40}
        elif self.path.startswith("/api/models/"):
            reply = {"id": "me/bees", "private": self.server.private, "sha": "0" * 40, "siblings": []}
        text = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_POST = do_HEAD = answer

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine, a token in the environment, and a folder with an adapter to put there."""
    import huggingface_hub.constants

    for variable in ("HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(variable, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.seen, server.private = [], True
    server.made = (200, {"url": f"{server.url}/me/bees", "name": "bees", "id": "me/bees"})
    for variable, value in {"HF_TOKEN": SECRET, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": server.url,
                            "NO_PROXY": "*", "no_proxy": "*"}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.folder = tmp_path / "adapter"
    server.folder.mkdir()
    (server.folder / "adapter_model.safetensors").write_bytes(b"numbers")
    (server.folder / "adapter_config.json").write_text('{"r": 4, "base_model_name_or_path": "/home/anna/models/base"}')
    for name in ("README.md", "training_args.bin", "notes.txt"):
        (server.folder / name).write_text("not for the hub")
    yield server
    server.shutdown()
    server.server_close()


def sent(hub, part):
    return b"".join(body for _, path, _, body in hub.seen if part in path)


def test_a_folder_goes_to_a_private_repository_without_pickles_cards_and_paths(hub, capsys):
    import base64

    assert export.push(hub.folder, "me/bees") == f"{hub.url}/me/bees"
    assert json.loads(sent(hub, "/repos/create"))["visibility"] == "private"
    files = {}
    for line in sent(hub, "/commit/").splitlines():
        record = json.loads(line)
        if record["key"] == "file":
            files[record["value"]["path"]] = base64.b64decode(record["value"]["content"])
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads(files["adapter_config.json"]) == {"r": 4, "base_model_name_or_path": "base"}
    assert all(token == f"Bearer {SECRET}" for _, _, token, _ in hub.seen)
    assert SECRET not in "".join(capsys.readouterr())


def test_a_repository_that_everybody_can_see_is_not_filled_by_default(hub):
    hub.private = False
    with pytest.raises(CourseError, match="everybody can see it"):
        export.push(hub.folder, "me/bees")
    assert not sent(hub, "/commit/")
    export.push(hub.folder, "me/bees", private=False)
    assert sent(hub, "/commit/")


@pytest.mark.parametrize("status", [401, 403, 404, 409, 500])
def test_what_the_hub_says_comes_as_a_sentence_without_the_token(hub, status):
    hub.made = (status, {"error": f"no entry for Bearer {SECRET}"})
    with pytest.raises(CourseError, match="could not be put on the hub") as caught:
        export.push(hub.folder, "me/bees")
    assert SECRET not in str(caught.value) and caught.value.__cause__ is None and caught.value.__context__ is None


@pytest.mark.parametrize("name", ["", "a/b/c", "has space", "-me/bees", "me/bees.git", "me//bees", "a--b", "x" * 120,
                                  "ü", None, 7])
def test_a_name_that_is_none_is_refused_before_the_hub_is_asked(hub, name):
    with pytest.raises(CourseError, match="expected owner/name"):
        export.push(hub.folder, name)
    assert hub.seen == []


def test_without_a_token_or_with_one_in_clear_nothing_is_sent(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    with pytest.raises(CourseError, match="no https address") as caught:
        export.push(hub.folder, "me/bees")
    assert SECRET not in str(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CourseError, match="environment variable HF_TOKEN"):
        export.push(hub.folder, "me/bees")
    assert hub.seen == []


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_a_folder_without_weights_is_refused(hub, tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CourseError, match="no safetensors"):
        export.push(tmp_path / folder, "me/bees")


@pytest.mark.slow
def test_the_shipped_riddle_policy_says_the_same_merged_and_as_gguf(tmp_path, monkeypatch):
    from problama_utils.config import course_root
    from problama_utils.model.completions import complete
    from problama_utils.tasks.riddles import load_riddles

    monkeypatch.delenv("PROBLAMA_MODEL", raising=False)
    monkeypatch.setenv("PROBLAMA_DTYPE", "float32")
    model, tokenizer = load_policy(get_profile("cpu"), seed=0)
    model = load_adapter(model, course_root() / "assets" / "runs" / "riddles-3407" / "adapter")
    chats = [TASKS["riddles"].messages(row) for row in list(load_riddles("heldout", difficulty=1))[:16]]
    said = complete(model, tokenizer, chats)
    folder = export.save_merged(model, tokenizer, tmp_path / "merged")
    alone = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(alone), logits(model), atol=2e-3, rtol=1e-3)
    assert complete(alone, tokenizer, chats) == said
    again, words = read_back(export.save_gguf(folder, tmp_path / "m.gguf"), torch.float32)
    assert differing(alone, again) == []
    words.pad_token, words.eos_token, words.padding_side = tokenizer.pad_token, tokenizer.eos_token, "left"
    words.clean_up_tokenization_spaces = False
    assert complete(again, words, chats) == said


LLAMA_CPP = "xllamacpp==2026.10.11549"  # the newest llama.cpp that the index has as a wheel for a CPU
ASK_LLAMA_CPP = """
import json, sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.cpuparams.n_threads, params.n_parallel = sys.argv[1], 1024, 1, 1
server = xllamacpp.Server(params)
for prompt in json.load(open(sys.argv[2])):
    answer = server.handle_completions({"prompt": prompt, "temperature": 0.0, "n_predict": 24, "cache_prompt": False})
    print("ANSWER", json.dumps(answer.get("content") or answer["choices"][0]["text"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("rope", [None, LLAMA_3_ROPE], ids=["plain", "stretched"])
def test_llama_cpp_itself_gives_the_same_answers(tmp_path, tmp_path_factory, monkeypatch, rope):
    """The riddle policy in fp32, greedily; stretched as Llama-3.1 is, 6 of its 8 answers are others than before."""
    from problama_utils.config import course_root
    from problama_utils.model import completions
    from problama_utils.tasks.riddles import load_riddles

    package = tmp_path_factory.getbasetemp() / "llama-cpp"
    if not package.exists():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*install, "--target", str(package), LLAMA_CPP], check=True)
    monkeypatch.delenv("PROBLAMA_MODEL", raising=False)
    monkeypatch.setenv("PROBLAMA_DTYPE", "float32")
    monkeypatch.setattr(completions, "llama_for_cpu", lambda _: None)  # transformers' own generate
    model, tokenizer = load_policy(get_profile("cpu"), seed=0)
    model = load_adapter(model, course_root() / "assets" / "runs" / "riddles-3407" / "adapter")
    folder = export.save_merged(model, tokenizer, tmp_path / "merged")
    if rope:
        edit("config.json", rope_parameters={**rope, "rope_theta": 100000.0})(folder)
    chats = [TASKS["riddles"].messages(row) for row in list(load_riddles("heldout", difficulty=1))[:8]]
    said = completions.complete(AutoModelForCausalLM.from_pretrained(folder), tokenizer, chats)
    (tmp_path / "prompts.json").write_text(json.dumps(completions.render(tokenizer, chats)), encoding="utf-8")
    file = export.save_gguf(folder, tmp_path / "m.gguf")
    command = [sys.executable, "-c", ASK_LLAMA_CPP, str(file), str(tmp_path / "prompts.json")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(package)})
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert answers == said
    assert len(set(said)) > 4
