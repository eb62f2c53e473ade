"""A token travels encrypted or not at all, and nothing that a hub says back shows it."""

import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
import traceback
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from problama_utils import CourseError
from problama_utils.config import get_profile
from problama_utils.model.loading import load_policy
from problama_utils.setup import hub as gated_model
from problama_utils.setup.hub import ask_hub, clear_text_trouble, scrubbed, shows_token
from problama_utils.tasks.sources import DataError, read_hub

SECRET = "hf_" + "Sesame" * 6
PLAIN = "a-token/of+another=kind"
NAME = "owner/model"
REDIRECTS = "unreachable (it redirects in a circle or to an address without encryption)"


class Hub(BaseHTTPRequestHandler):
    """Answers every request with the server's `answer`: a status, headers and a body; remembers who sent a token."""

    def do_HEAD(self):
        self.server.seen.append((self.path, self.headers.get("Authorization", "")))
        status, headers, body = self.server.answer(self.path)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_GET = do_HEAD

    def log_message(self, *_):
        pass


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Return a function that starts a hub on this machine, in clear or with a certificate."""
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "PROBLAMA_UNGATED", "PROBLAMA_MODEL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "*")
    servers = []

    def begin(answer, certificate=None):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        server.seen, server.answer = [], answer
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def certificate(tmp_path, monkeypatch):
    """A certificate for this machine that Python trusts during the test; None where openssl cannot make one."""
    if not shutil.which("openssl"):
        return None
    key, certificate, both = (tmp_path / name for name in ("key.pem", "certificate.pem", "both.pem"))
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
               "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    if subprocess.run(command, capture_output=True).returncode:
        return None
    both.write_text(key.read_text() + certificate.read_text())
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return both


@pytest.mark.parametrize("target", [
    "http://hub.example/new/name", "http://hub.example:443/new/name", "http://hub.example:80/new/name",
    "https://hub.example:444/new/name", "https://other.example/new/name", "https://sub.hub.example/new/name",
    "https://hub.example.evil.com/x", "ftp://hub.example/x", "HTTP://HUB.EXAMPLE/x", "https://hub.example:80/x",
    "http://127.0.0.1/x", "http://user:pw@hub.example/x",
])  # fmt: skip
def test_no_redirect_is_followed_to_another_scheme_host_or_port(target):
    request = urllib.request.Request("https://hub.example/old/name", headers={"Authorization": "x"}, method="HEAD")
    assert gated_model._SameHostOnly().redirect_request(request, None, 302, "", {}, target) is None


@pytest.mark.parametrize("target", ["https://hub.example/new", "https://hub.example:443/new", "https://HUB.example/new"])
def test_a_redirect_on_the_same_host_is_followed_with_the_token(target):
    request = urllib.request.Request("https://hub.example/old/name", headers={"Authorization": "x"}, method="HEAD")
    again = gated_model._SameHostOnly().redirect_request(request, None, 307, "", {}, target)
    assert again.get_header("Authorization") == "x" and again.get_method() == "HEAD"


def test_from_https_to_http_the_token_stays_here(start, certificate, monkeypatch):
    clear = start(lambda path: (200, {}, b""))
    port = clear.server_port
    if certificate is None:  # no certificate to be had: the redirect itself is tested above
        monkeypatch.setenv("HF_ENDPOINT", "https://127.0.0.1:9")
        assert ask_hub(NAME, 2.0).startswith("unreachable (")
        return
    locked = start(lambda path: (302, {"Location": f"http://127.0.0.1:{port}{path}"}, b""), certificate)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("HF_ENDPOINT", f"https://127.0.0.1:{locked.server_port}")
    assert ask_hub(NAME, 5.0) == REDIRECTS
    assert clear.seen == [] and [token for _, token in locked.seen] == [f"Bearer {SECRET}"]


def test_over_https_a_renamed_repository_is_found(start, certificate, monkeypatch):
    def answer(path):
        return (200, {}, b"") if "new" in path else (307, {"Location": path.replace("owner", "new")}, b"")

    hub = start(answer, certificate)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("HF_ENDPOINT", f"{'https' if certificate else 'http'}://127.0.0.1:{hub.server_port}")
    assert ask_hub(NAME, 5.0) == "open"
    assert [token for _, token in hub.seen] == [f"Bearer {SECRET}"] * 2


def test_a_redirect_in_a_circle_is_no_open_door(start, monkeypatch):
    hub = start(lambda path: (302, {"Location": path}, b""))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
    assert ask_hub(NAME, 5.0) == REDIRECTS


CLEAR = ["http://hub.example", "HTTP://Hub.Example", "http://hub.example:443", "http://127.0.0.1.example",
         "http://localhost.example", "http://10.0.0.1", "http://0.0.0.0:8080", "http://[2001:db8::1]", "ftp://localhost",
         "hub.example", "http://"]  # fmt: skip


@pytest.mark.parametrize("address", CLEAR)
def test_an_endpoint_in_clear_gets_no_token(monkeypatch, tmp_path, address):
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("PROBLAMA_MODEL", NAME)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(urllib.request, "build_opener", lambda *_: pytest.fail("a request was made"))
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda **_: pytest.fail("a request was made"))
    assert "HF_ENDPOINT" in ask_hub(NAME, 1.0) and "HF_TOKEN" in clear_text_trouble()
    for act in (lambda: load_policy(get_profile("cpu")), lambda: read_hub("hub:x", path="x")):
        with pytest.raises(CourseError, match="never sent without encryption") as caught:
            act()
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8000", "http://localhost", "http://[::1]:80", "http://127.9.9.9",
                                     "https://hub.example", "HTTPS://Hub.Example", ""])  # fmt: skip
def test_https_and_this_machine_itself_are_in_order(monkeypatch, address):
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert clear_text_trouble() == ""


def test_without_a_token_there_is_nothing_to_hide(monkeypatch, tmp_path):
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    assert clear_text_trouble() == ""


def test_a_hub_on_this_machine_is_asked_without_the_proxy(start, monkeypatch):
    hub, proxy = start(lambda path: (200, {}, b"")), start(lambda path: (200, {}, b""))
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
    assert ask_hub(NAME, 5.0) == "open"
    assert proxy.seen == [] and hub.seen


@pytest.mark.parametrize("token", [SECRET, PLAIN, 'quote"and\\slash', "späte-straße", "x" * 200])
@pytest.mark.parametrize("echo", [
    lambda t: f"Invalid token {t}.", lambda t: f"Authorization: Bearer {t}", lambda t: repr({"authorization": t}),
    lambda t: json.dumps({"error": t}), lambda t: f"https://user:{urllib.parse.quote(t, safe='')}@hub/x",
    lambda t: f"?token={urllib.parse.quote_plus(t)}", lambda t: f"{t}{t}", lambda t: t,
    lambda t: f"headers=[('Authorization', 'Bearer {t}')]", lambda t: f"first line\n{t}\nlast",
    lambda t: f"Invalid header value {f'Bearer {t}'.encode('latin-1', 'backslashreplace')!r}",
])  # fmt: skip
def test_a_token_is_scrubbed_in_whatever_form_it_is_echoed(monkeypatch, token, echo):
    monkeypatch.setenv("HF_TOKEN", token)
    text = scrubbed(echo(token))
    assert "***" in text
    assert not any(form in text for form in (token, json.dumps(token)[1:-1], urllib.parse.quote(token, safe="")))


@pytest.mark.parametrize("text", ["", "hf_hub_download failed", "a bearer of news", "Repository hf_transfer not found",
                                  "Basic rules", "404 Client Error"])  # fmt: skip
def test_ordinary_words_stay(monkeypatch, text):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert scrubbed(text) == text


def test_tokens_of_every_place_are_known(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "first-token-here")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "second-token-here")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text("third-token-here\n")
    assert scrubbed("first-token-here second-token-here third-token-here") == "*** *** ***"


def chained(*texts):
    error = None
    for text in texts:
        try:
            raise RuntimeError(text) from error
        except RuntimeError as found:
            error = found
    return error


@pytest.mark.parametrize("texts", [[SECRET], ["x", SECRET, "y"], [SECRET, "y"], ["x", f"Bearer {SECRET}"]])
def test_a_chain_that_would_print_a_token_is_noticed(monkeypatch, texts):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert shows_token(chained(*texts)) and not shows_token(chained("x", "y"))


@pytest.mark.parametrize("texts", [[SECRET], ["deep " + SECRET, "wrapped"], ["401 Client Error: " + SECRET],
                                   ["x", f"two\nlines {SECRET}"]])  # fmt: skip
def test_no_traceback_of_a_failed_load_shows_the_token(monkeypatch, texts):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("PROBLAMA_MODEL", NAME)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    from problama_utils.model import loading as models

    def fail(*_):
        raise chained(*texts)

    monkeypatch.setattr(models, "_load_with_transformers", fail)
    with pytest.raises(CourseError) as caught:
        load_policy(get_profile("cpu"))
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__cause__ is None and caught.value.__context__ is None


def test_an_error_without_a_token_keeps_its_traceback(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("PROBLAMA_MODEL", NAME)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    from problama_utils.model import loading as models

    failure = chained("cause", "our own bug")
    monkeypatch.setattr(models, "_load_with_transformers", lambda *_: (_ for _ in ()).throw(failure))
    with pytest.raises(RuntimeError, match="our own bug") as caught:
        load_policy(get_profile("cpu"))
    assert caught.value is failure


@pytest.mark.parametrize("text", [SECRET, f"500: {SECRET} is unknown", "x" * 150 + SECRET, f"line\n{SECRET}"])
def test_no_traceback_of_failed_data_shows_the_token(monkeypatch, text):
    import datasets

    def fail(**_):
        raise chained(text, "wrapped") if "line" in text else chained(text)

    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match="embedded") as caught:
        read_hub("hub:x", path="x")
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown and SECRET[:12] not in shown


PROGRAM = """
import dataclasses
from problama_utils.config import get_profile
from problama_utils.model.loading import load_policy
try:
    load_policy(dataclasses.replace(get_profile("cpu"), model_name="owner/model"))
except ValueError as error:
    raise RuntimeError("what a notebook would show around it") from error
"""


@pytest.mark.slow
@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 422])
def test_the_real_clients_show_no_token_that_a_hub_echoes(start, status):
    def answer(path):
        words = f"Bad token {SECRET} in Authorization: Bearer {SECRET}"
        body = json.dumps({"error": words, "cause": SECRET}).encode()
        return status, {"X-Error-Message": words, "Content-Type": "application/json", "X-Request-Id": SECRET}, body

    hub = start(answer)
    whole = {**os.environ, "HF_TOKEN": SECRET, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
             "HF_HUB_OFFLINE": "0", "PROBLAMA_PROFILE": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=whole)
    assert any(token for _, token in hub.seen), "the real client sent its token to this machine"
    assert done.returncode == 1 and "CourseError" in done.stderr, done.stderr
    assert SECRET not in done.stdout + done.stderr
