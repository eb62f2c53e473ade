"""The licence gate: the switch, the sentences, and the real clients against a stand-in hub on this machine."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from problama_utils.config import get_profile
from problama_utils.setup import hub as gated_model
from problama_utils.setup.hub import (
    SWITCH,
    UNGATED_COPIES,
    ask_hub,
    chosen_name,
    is_gated,
    loads_a_copy,
    on_hub,
    refusal,
    refusal_sentence,
    token_place,
)

GATED = get_profile("slides").model_name
COPY = UNGATED_COPIES[GATED.lower()]
STRANGER, EXPIRED, LET_IN = ("hf_" + word * 8 for word in ("Strang", "Expire", "LetInn"))
COMMIT = "0" * 40


class StandInHub(BaseHTTPRequestHandler):
    """Answers as the hub does: 401 or 403 with its headers for the gated name, files for the others."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("Authorization", "")))
        parts = self.path.split("?")[0].strip("/").split("/")
        api = parts[0] == "api"
        name = "/".join(parts[2:4] if api else parts[:2])
        if is_gated(name) and (trouble := self._trouble(name)):
            return self._answer(*trouble)
        if name == "old/name":
            return self._answer(307, {"Location": f"/{GATED}/resolve/main/config.json"})
        if name == "far/away":
            return self._answer(302, {"Location": f"http://localhost.invalid:{self.server.server_port}/store"})
        if name == "behind/proxy":
            return self._answer(403, {})
        folder = self.server.files.get(name)
        file = folder / parts[-1] if folder and not api and len(parts) > 2 else None
        if file is None or not file.is_file():
            code = "EntryNotFound" if folder else "RepoNotFound"
            return self._answer(404, {"X-Error-Code": code, "X-Repo-Commit": COMMIT})
        return self._answer(200, {"ETag": f'"{file.name}"', "X-Repo-Commit": COMMIT}, file.read_bytes())

    def _trouble(self, name):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token == LET_IN:
            return None
        if token == EXPIRED:
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}
        words = f"Access to model {name} is restricted."
        return (403 if token else 401), {"X-Error-Code": "GatedRepo", "X-Error-Message": words}

    def _answer(self, status, headers, body=b""):
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandInHub)
    server.seen, server.files = [], {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", SWITCH, "PROBLAMA_MODEL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "*")
    yield server
    server.shutdown()
    server.server_close()


def test_the_switch_exchanges_the_slides_model_for_the_copy_that_colab_takes(monkeypatch):
    monkeypatch.delenv("PROBLAMA_MODEL", raising=False)
    monkeypatch.delenv(SWITCH, raising=False)
    assert chosen_name(get_profile("slides")) == GATED and is_gated(GATED)
    monkeypatch.setenv(SWITCH, "1")
    assert chosen_name(get_profile("slides")) == COPY == get_profile("colab-t4").model_name
    assert not is_gated(COPY)
    assert chosen_name(get_profile("cpu")) == "embedded"  # nothing to exchange


@pytest.mark.parametrize("off", ["", "0", "no", "False", " off "])
def test_the_switch_can_be_off_in_words(monkeypatch, off):
    monkeypatch.setenv(SWITCH, off)
    assert chosen_name(get_profile("slides")) == GATED


def test_todays_hub_id_is_exchanged_as_well(monkeypatch):
    monkeypatch.setenv("PROBLAMA_MODEL", "meta-llama/Llama-3.1-8B-Instruct")
    monkeypatch.setenv(SWITCH, "1")
    assert chosen_name(get_profile("slides")) == COPY


def test_only_unsloth_in_4_bits_goes_round_the_gate_by_itself():
    import dataclasses

    slides = get_profile("slides")
    assert loads_a_copy(slides)
    assert not loads_a_copy(dataclasses.replace(slides, load_in_4bit=False))
    assert not loads_a_copy(dataclasses.replace(slides, backend="transformers"))


def test_a_folder_is_not_taken_for_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meta-llama" / "mine").mkdir(parents=True)
    assert not on_hub("meta-llama/mine") and not on_hub("embedded") and not on_hub(str(tmp_path))


@pytest.mark.parametrize(("name", "token", "answer"), [
    (GATED, "", "refused (401)"), (GATED, STRANGER, "refused (403)"), (GATED, EXPIRED, "refused (401)"),
    (GATED, LET_IN, "open"), ("old/name", LET_IN, "open"), ("old/name", "", "refused (401)"),
    ("far/away", LET_IN, "open"), ("some/where", "", "missing (404)"),
    ("behind/proxy", "", "unreachable (something answers 403)"),
])  # fmt: skip
def test_the_hubs_answer_is_read(hub, monkeypatch, tmp_path, name, token, answer):
    hub.files[GATED] = tmp_path
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setenv("HF_TOKEN", token)
    assert ask_hub(name, 5.0) == answer
    assert not any("store" in path for path, _ in hub.seen), "no token may travel to another host"


def test_a_hub_that_is_not_there_is_unreachable(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert ask_hub(GATED, 2.0).startswith("unreachable (")


def test_the_token_is_found_where_huggingface_hub_finds_it_and_only_its_place_is_told(hub, monkeypatch, tmp_path):
    assert token_place() == ""
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(STRANGER + "\n")
    assert token_place() == "the token file of `hf auth login`" and gated_model._token() == STRANGER
    monkeypatch.setenv("HF_TOKEN", LET_IN)
    assert token_place() == "the environment variable HF_TOKEN" and gated_model._token() == LET_IN


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("token", ["", STRANGER])
@pytest.mark.parametrize("name", [GATED, "someone/private", "meta-llama/Llama-3.3-70B-Instruct"])
def test_every_refusal_ends_in_a_switch_and_shows_no_token(hub, monkeypatch, status, token, name):
    monkeypatch.setenv("HF_TOKEN", token)
    sentence = refusal_sentence(name, status)
    assert (f"{SWITCH}=1" if name == GATED else "PROBLAMA_PROFILE=cpu") in sentence
    assert STRANGER not in sentence and "\n" not in sentence and str(status) in sentence


def test_a_refusal_is_recognised_behind_every_wrapping():
    class Answer:
        status_code = 403

    deep = OSError("x")
    deep.response = Answer()
    try:
        try:
            raise deep
        except OSError as error:
            raise RuntimeError("Unsloth: Failed to load model.") from error
    except RuntimeError as error:
        assert refusal(error) == 403
    assert refusal(OSError("401 Client Error. Cannot access gated repo")) == 401
    assert refusal(OSError("No such file")) == 0
    loop = ValueError("a")
    loop.__cause__ = loop
    assert refusal(loop) == 0


PROGRAM = """
import dataclasses, json, sys
from problama_utils.config import get_profile
from problama_utils.model.loading import load_policy
settings = json.loads(sys.argv[1])
model, tokenizer = load_policy(dataclasses.replace(get_profile("slides"), **settings))
print("LOADED", type(model).__name__, len(tokenizer))
"""
# What unsloth 2026.10.9 does around the gate (models/loader.py): ask for both configurations, then wrap both errors.
UNSLOTH = """
class FastLanguageModel:
    @staticmethod
    def from_pretrained(model_name, **_):
        from peft import PeftConfig
        from transformers import AutoConfig
        errors = []
        for kind in (AutoConfig, PeftConfig):
            try:
                kind.from_pretrained(model_name)
            except Exception as error:
                errors.append(error)
        raise RuntimeError(f"Unsloth: Failed to load model.\\n\\nAutoConfig error: {errors[0]}") from errors[0]
"""


def load(settings, folder, **environment):
    command = [sys.executable, "-c", PROGRAM, json.dumps(settings)]
    whole = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=whole)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "token", "word"), [
    ("transformers", "", "there is no token here"), ("transformers", STRANGER, "has not been let in"),
    ("transformers", EXPIRED, "is not valid"), ("unsloth", STRANGER, "has not been let in"),
], ids=["no token", "not let in", "expired", "through unsloth"])  # fmt: skip
def test_a_refused_load_is_one_sentence_that_names_the_switch(hub, tmp_path, backend, token, word):
    (tmp_path / "unsloth.py").write_text(UNSLOTH)
    done = load({"backend": backend, "load_in_4bit": False}, tmp_path, HF_TOKEN=token)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("CourseError: The hub refuses") and f"{SWITCH}=1" in sentence and word in sentence
    assert not token or token not in done.stdout + done.stderr
    stored = [path for path in tmp_path.rglob("*") if path.is_file() and token and token in path.read_text("latin-1")]
    assert not stored, "the token was written to disk"
    assert any(GATED in path for path, _ in hub.seen), "the real client asked the stand-in"


@pytest.mark.slow
def test_with_the_switch_on_the_copy_is_downloaded_and_loaded(hub, tmp_path, tiny_model_dir):
    hub.files[COPY] = tiny_model_dir
    settings = {"backend": "transformers", "load_in_4bit": False}
    done = load(settings, tmp_path, **{SWITCH: "1"})
    assert done.returncode == 0 and "LOADED LlamaForCausalLM 259" in done.stdout, done.stderr
    assert not any(GATED in path for path, _ in hub.seen)
