"""The licence gate before Llama's weights: which name is asked for, where a token may be, what a refusal means.

Meta's repositories on the Hugging Face hub open only to accounts that accepted the licence, shown by a token. One
switch, `PROBLAMA_UNGATED=1`, takes a copy of the same weights without a gate. Nothing here prints, stores or returns a
token: it is used once, as the header of a request to the hub over https, and otherwise only its place is named; what a
hub says back is scrubbed of it.
"""

from __future__ import annotations

import contextlib
import html
import http.client
import ipaddress
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from problama_utils.config import Profile, path_variable

SWITCH = "PROBLAMA_UNGATED"
GATED_OWNERS = ("meta-llama/",)
# Same weights, already in 4 bits, no gate. The deck writes the model's former hub id (in capitals of its own); the hub
# calls it meta-llama/Llama-3.1-8B-Instruct today.
UNGATED_COPIES = {
    "meta-llama/meta-llama-3.1-8b-instruct": "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit",
    "meta-llama/llama-3.1-8b-instruct": "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit",
}

SHORTEST_TOKEN = 8  # characters; a shorter one would be found in ordinary words
_LOOKS_SECRET = re.compile(r"hf_[A-Za-z0-9]{16,}|(?<=Bearer )[\w.~+/=-]{8,}|(?<=Basic )[\w+/=-]{8,}", re.IGNORECASE)


def chosen_name(profile: Profile) -> str:
    """Return the model that a profile loads here: PROBLAMA_MODEL, or its own, or that one's ungated copy.

    The switch is off where it is unset, empty, 0, no, off or false.
    """
    name = path_variable("PROBLAMA_MODEL") or profile.model_name
    ungated = os.environ.get(SWITCH, "").strip().lower() not in ("", "0", "no", "off", "false")
    return UNGATED_COPIES.get(name.lower(), name) if ungated else name


def on_hub(name: str) -> bool:
    """Tell whether a model name means a repository on the hub: owner/name, and no folder of that name.

    >>> on_hub("embedded"), on_hub("meta-llama/Llama-3.1-8B-Instruct")
    (False, True)
    """
    owner, _, repository = name.partition("/")
    return bool(owner and repository) and "/" not in repository and not Path(name).exists()


def is_gated(name: str) -> bool:
    """Tell whether a name belongs to an owner whose repositories are gated."""
    return name.lower().startswith(GATED_OWNERS)


def loads_a_copy(profile: Profile) -> bool:
    """Tell whether unsloth goes round the gate by itself.

    In 4 bits it exchanges the names in UNGATED_COPIES before it asks the hub (2026.10.9, models/mapper.py).
    """
    return profile.backend == "unsloth" and profile.load_in_4bit and chosen_name(profile).lower() in UNGATED_COPIES


def hub_endpoint() -> str:
    """Return the hub's address: HF_ENDPOINT, or the public one."""
    return (os.environ.get("HF_ENDPOINT", "").strip() or "https://huggingface.co").rstrip("/")


def hub_home() -> Path:
    """Return the folder in which huggingface_hub keeps its token and its downloads (HF_HOME)."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expandvars(os.environ.get("HF_HOME") or f"{cache}/huggingface")).expanduser()


def token_place() -> str:
    """Return where a token lies, in words, or "" where there is none; never the token."""
    return next(iter(_tokens()), "")


def _token() -> str:
    return next(iter(_tokens().values()), "")


def _tokens() -> dict[str, str]:
    """Return place → token for every token that lies here, the one that is used first."""
    variables = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    found = {f"the environment variable {name}": os.environ.get(name, "") for name in variables}
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        file = Path(os.environ.get("HF_TOKEN_PATH") or hub_home() / "token").expanduser()
        found["the token file of `hf auth login`"] = file.read_text(encoding="utf-8")
    return {place: token.strip() for place, token in found.items() if token.strip()}


def scrubbed(text: str) -> str:
    """Return a text with every token in it replaced by ***: those that lie here, and what looks like one.

    >>> scrubbed("invalid credentials: Bearer hf_abcdefghijklmnopqrstuvwxyz")
    'invalid credentials: Bearer ***'
    """
    for token in _tokens().values():
        if len(token) >= SHORTEST_TOKEN:
            as_bytes = repr(token.encode("latin-1", "backslashreplace"))[2:-1]
            for form in {token, as_bytes, repr(token)[1:-1], json.dumps(token)[1:-1], html.escape(token),
                         urllib.parse.quote(token, safe=""), urllib.parse.quote_plus(token)}:
                text = text.replace(form, "***")
    return _LOOKS_SECRET.sub("***", text)


def shows_token(error: BaseException) -> bool:
    """Tell whether an error, or one that it is chained to, would print a token."""
    texts = (text for link in _chain(error) for text in (str(link), repr(link), *getattr(link, "__notes__", ())))
    return any(scrubbed(text) != text for text in map(str, texts))


def clear_text_trouble() -> str:
    """Return why no token may be sent to the hub's address, in a sentence; "" where it may, or where there is none.

    Without encryption everybody on the way can read it, so it goes over https only, or to this machine itself.
    """
    address = urllib.parse.urlsplit(hub_endpoint())
    if not _token() or address.scheme == "https" or (address.scheme == "http" and _is_this_machine(address.hostname)):
        return ""
    return (f"HF_ENDPOINT = {scrubbed(hub_endpoint())} is no https address, and a token is never sent without "
            f"encryption: write https://, or take the token out of {token_place()}.")


def _is_this_machine(host: str | None) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host or "").is_loopback
    return host == "localhost"


def _origin(address: str) -> tuple[str, str | None, int | None]:
    parts = urllib.parse.urlsplit(address)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)


class _SameHostOnly(urllib.request.HTTPRedirectHandler):
    """Follow the hub's redirect of a renamed repository, but carry no token to another scheme, host or port."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if _origin(newurl) != _origin(req.full_url):
            return None
        again = super().redirect_request(req, fp, code, msg, headers, newurl)
        if again is not None:
            again.method = "HEAD"
        return again


def ask_hub(name: str, timeout: float) -> str:
    """Ask the hub with one HEAD request whether this machine may read a model; `timeout` is in seconds.

    Returns:
        "open", "refused (401)" or "refused (403)", "missing (404)", or "unreachable (why)".
    """
    if trouble := clear_text_trouble():
        return f"unreachable ({trouble.rstrip('.')})"
    try:
        request = urllib.request.Request(f"{hub_endpoint()}/{name}/resolve/main/config.json", method="HEAD")
        if _token():
            request.add_header("Authorization", f"Bearer {_token()}")
        # a hub on this machine is asked without the proxy, which would be told the token
        direct = [urllib.request.ProxyHandler({})] if request.type == "http" else []
        with urllib.request.build_opener(_SameHostOnly, *direct).open(request, timeout=timeout):
            return "open"
    except urllib.error.HTTPError as error:
        if error.code < 400:  # redirected to the store of large files: the gate is passed
            target = urllib.parse.urljoin(error.url, error.headers.get("Location", ""))
            scheme, *_ = _origin(target)
            if _origin(target) != _origin(error.url) and scheme in ("https", _origin(error.url)[0]):
                return "open"
            return "unreachable (it redirects in a circle or to an address without encryption)"
        words = {401: "refused (401)", 403: "refused (403)", 404: "missing (404)"}
        from_hub = error.headers.get("X-Error-Code") or error.headers.get("X-Error-Message")  # a proxy says neither
        return words.get(error.code if from_hub else 0, f"unreachable (something answers {error.code})")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"unreachable ({scrubbed(str(getattr(error, 'reason', error)))})"


def refusal(error: BaseException) -> int:
    """Return the status, 401 or 403, with which the hub refused a request that led to `error`; 0 if it did not.

    Libraries wrap the hub's answer (transformers in an OSError, unsloth in a RuntimeError), so the chain of causes is
    searched. The classes are huggingface_hub's, by name: GatedRepoError, RepositoryNotFoundError, HfHubHTTPError.
    """
    for link in _chain(error):
        status = getattr(getattr(link, "response", None), "status_code", None)
        if status in (401, 403):
            return status
        if type(link).__name__ == "GatedRepoError":
            return 403
    text = " ".join(str(link) for link in _chain(error))
    return next((status for status in (401, 403) if f"{status} Client Error" in text), 0)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def refusal_sentence(name: str, status: int) -> str:
    """Return what a refusal means and what to do: the licence and a token, or the switch."""
    place, copy = token_place(), UNGATED_COPIES.get(name.lower())
    if not is_gated(name):
        why = f"it is private or does not exist, and was asked for with {place or 'no token'}: check the name"
    elif not place:
        why = "it is gated and there is no token here: accept its licence on the hub and put your token into HF_TOKEN"
    elif status == 401:
        why = f"it is gated and the token in {place} is not valid: make a new one"
    else:
        why = f"it is gated and the account of the token in {place} has not been let in: accept its licence on the hub"
    switch = f"set {SWITCH}=1 to load the ungated copy {copy}" if copy else "set PROBLAMA_PROFILE=cpu"
    return scrubbed(f"The hub refuses {name!r} ({status}): {why}, or {switch}.")
