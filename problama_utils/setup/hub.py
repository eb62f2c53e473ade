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
PUBLIC_HUB = "https://huggingface.co"
GATED_OWNERS = ("meta-llama/",)
# Same weights, already in 4 bits, no gate. The deck writes the model's former hub id (in capitals of its own); the hub
# calls it meta-llama/Llama-3.1-8B-Instruct today.
UNGATED_COPIES = {
    "meta-llama/meta-llama-3.1-8b-instruct": "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit",
    "meta-llama/llama-3.1-8b-instruct": "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit",
}

SHORTEST_TOKEN = 8  # characters; a shorter one would be found in ordinary words
_LOOKS_SECRET = re.compile(r"hf_[A-Za-z0-9]{16,}|(?<=Bearer )[\w.~+/=-]{8,}|(?<=Basic )[\w+/=-]{8,}", re.IGNORECASE)


def wants_ungated() -> bool:
    """Tell whether the switch PROBLAMA_UNGATED is on; empty, 0, no, off and false mean off."""
    return os.environ.get(SWITCH, "").strip().lower() not in ("", "0", "no", "off", "false")


def chosen_name(profile: Profile) -> str:
    """Return the model that a profile loads here: PROBLAMA_MODEL, or its own, or that one's ungated copy.

    >>> from problama_utils.config import get_profile
    >>> chosen_name(get_profile("cpu"))
    'embedded'
    """
    name = path_variable("PROBLAMA_MODEL") or profile.model_name
    return UNGATED_COPIES.get(name.lower(), name) if wants_ungated() else name


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

    In 4 bits its `FastLanguageModel` exchanges the names in UNGATED_COPIES for its own 4-bit repository before it asks
    the hub (unsloth 2026.10.9, models/mapper.py and `get_model_name`).
    """
    return profile.backend == "unsloth" and profile.load_in_4bit and chosen_name(profile).lower() in UNGATED_COPIES


def hub_endpoint() -> str:
    """Return the hub's address: HF_ENDPOINT, or the public one."""
    return (os.environ.get("HF_ENDPOINT", "").strip() or PUBLIC_HUB).rstrip("/")


def hub_home() -> Path:
    """Return the folder in which huggingface_hub keeps its token and its downloads (HF_HOME)."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expandvars(os.environ.get("HF_HOME") or f"{cache}/huggingface")).expanduser()


def token_place() -> str:
    """Return where a token lies, in words, or "" where there is none; never the token."""
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(variable, "").strip():
            return f"the environment variable {variable}"
    return "the token file of `hf auth login`" if _token() else ""


def _token() -> str:
    return next(iter(_tokens()), "")


def _tokens() -> list[str]:
    """Return every token that lies here, the one that is used first."""
    found = [os.environ.get("HF_TOKEN"), os.environ.get("HUGGING_FACE_HUB_TOKEN")]
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        file = Path(os.environ.get("HF_TOKEN_PATH") or hub_home() / "token").expanduser()
        found.append(file.read_text(encoding="utf-8"))
    return [token.strip() for token in found if token and token.strip()]


def scrubbed(text: str) -> str:
    """Return a text with every token in it replaced by ***: those that lie here, and what looks like one.

    >>> scrubbed("invalid credentials: Bearer hf_abcdefghijklmnopqrstuvwxyz")
    'invalid credentials: Bearer ***'
    """
    for token in _tokens():
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
    """Ask the hub with one HEAD request whether this machine may read a model.

    Args:
        name: of the repository.
        timeout: seconds.

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
            if _origin(target) == _origin(error.url):
                return "unreachable (it redirects in a circle)"
            if urllib.parse.urlsplit(target).scheme not in ("https", urllib.parse.urlsplit(error.url).scheme):
                return "unreachable (it redirects to an address without encryption)"
            return "open"
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
    """Return what a refusal means and what to do: the licence and a token, or the switch.

    >>> "PROBLAMA_UNGATED=1" in refusal_sentence("meta-llama/Llama-3.1-8B-Instruct", 401)
    True
    """
    place = token_place()
    if not is_gated(name):
        held = f"with the token in {place}" if place else "without a token"
        return scrubbed(f"The hub refuses {name!r} {held} ({status}): it is private or does not exist. Check the name "
                        "(PROBLAMA_MODEL), or set PROBLAMA_PROFILE=cpu for the model that needs no hub.")
    if not place:
        why = "it is gated and there is no token here: accept its licence on the hub and put your token into HF_TOKEN"
    elif status == 401:
        why = f"it is gated and the token in {place} is not valid: make a new one"
    else:
        why = f"it is gated and the account of the token in {place} has not been let in: accept its licence on the hub"
    copy = UNGATED_COPIES.get(name.lower())
    switch = f"set {SWITCH}=1 to load the ungated copy {copy}" if copy else "set PROBLAMA_PROFILE=cpu"
    return scrubbed(f"The hub refuses {name!r} ({status}): {why}, or {switch}.")
