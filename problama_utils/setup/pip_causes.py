"""Why pip failed, as one sentence: what happened and what to do. Standard library only, as `setup.install` needs it.

Pip says why in its ERROR lines; a WARNING before them, such as a retry that helped, is no cause.
"""

from __future__ import annotations

import re

# What pip says at its end → what happened, what to do; the first that matches counts. `{0}` is the first group.
PIP_CAUSES = (
    (r"no space left on device|\[winerror 112\]|disk quota exceeded|errno 28\b",
     "the disk filled up while installing", "free some space (4 GB, on Linux up to 7) and run the command again"),
    (r"externally-managed-environment", "this Python belongs to the operating system, which forbids pip to change it",
     "make an environment of its own with `python3 problama_utils/setup/install.py --venv .venv`"),
    (r"no module named '?pip\b", "this Python has no pip",
     "add it (`python -m ensurepip`, Debian: python3-pip, uv: `uv pip install pip`) and run the command again"),
    (r"windows long path support", "Windows refuses paths of more than 260 characters",
     "enable long paths, or move the course to a short path such as C:\\course, and run the command again"),
    (r"(?:permission denied|\[winerror (?:5|32)\][^:\n]*|read-only file system)(?:: *(\S+))?",
     "pip may not write a file ({0})",
     "close the programs that use it, or install where you may write, and run the command again"),
    (r"do not match the hashes[^\n]*(?:\n *([\w.-]+)[^\n]* from )?",
     "a file that was served has another checksum than was asked for ({0})",
     "clear pip's cache (`pip cache purge`), try another index or ask who runs this one"),
    (r"cannot install (.+?) because these package versions have|resolutionimpossible|resolution-too-deep",
     "the releases asked for exclude each other ({0})",
     "look for pins of your own (PIP_CONSTRAINT, pip.conf) or start from a fresh environment"),
    (r"package '?([^'\s]+)'? requires a different python", "a package does not run on this Python ({0})",
     "use Python 3.11, 3.12 or 3.13"),
    (r"(?:killed|terminated) signal|failed with signal 9|out of memory",
     "the memory did not suffice to compile a package", "close other programs, or use Python 3.11, 3.12 or 3.13"),
)
# Where a package had to be compiled: that it failed and its name, and the first line that tells why.
BUILD_FAILED = (r"(?:building wheel|could not build wheels) for ([\w.-]+)|failed to build (?!installable)'?([\w.-]+)"
                r"|failed to build installable wheels[^\n]*\n([\w.-]+)|metadata-generation-failed|fatal error:?"
                r"|generating package metadata\.\n(?!see above)([\w.-]+)|subprocess-exited-with-error")
BUILD_LACKS = (r"^(?!error: (?:subprocess|failed-wheel|metadata)|ERROR)[^\n]*"
               r"(?:\berror:|\w+Error:|fatal error|cannot find)[^\n]*")
# What a connection that failed says → what happened, what to do.
CONNECTION_CAUSES = (
    (r"\b407\b|proxy authentication", "the proxy asks for a name and a password",
     "put them into HTTPS_PROXY (http://name:password@proxy:port) and run the command again"),
    (r"ssl module (?:in python )?is not available", "this Python was built without SSL and can use no package index",
     "install another (3.11 to 3.13)"),
    (r"certificate|ssl(?:v3|error|:)", "the package index cannot be reached: its SSL certificate is refused",
     "check this machine's clock, or name your network's own certificate in PIP_CERT, and run the command again"),
    (r"proxyerror|connect to proxy|proxy-connection-failed",
     "the package index cannot be reached: the proxy does not answer", "check HTTPS_PROXY and run the command again"),
    (r"timed? ?out|timeout", "the package index cannot be reached: it did not answer in time",
     "check the network, or allow more with PIP_DEFAULT_TIMEOUT=60, and run the command again"),
    (r"(?:http error|client error|server error|status code):? *(\d+)|(\d{3}) (?:client|server) error",
     "the package index refused a file with HTTP {0}", "check PIP_INDEX_URL and run the command again"),
    (r"connection|name resolution|name or service not known|getaddrinfo|network is unreachable|max retries|"
     r"incompleteread|incomplete-download|not enough bytes|protocolerror", "the package index cannot be reached",
     "check the network or PIP_INDEX_URL and run the command again"),
)


def explain(stderr: str, status: int = 1) -> str:
    """Turn pip's complaint into one sentence: what happened and what to do."""
    return "{}: {}.".format(*diagnose(stderr, status))


def diagnose(stderr: str, status: int = 1) -> tuple[str, str]:
    """Return why `pip --quiet` failed and what to do: by its ERROR lines; warnings tell why an index was silent."""
    lines = [re.sub(r"^[\s│╰─>×|]+", "", line) for line in stderr.splitlines()]
    lines = [line for line in lines if line and not re.match(r"hint:|note:", line)]  # pip's guesses
    warnings = [line for line in lines if re.match(r"WARNING|DEPRECATION|Could not fetch URL", line)]
    text = "\n".join(line for line in lines if line not in warnings)
    if status < 0 or 128 < status < 160:
        number = -status if status < 0 else status - 128  # a shell adds 128 to the signal's
        why = ", most often for want of memory" if number == 9 else ""
        return f"pip was ended by signal {number}{why}", "close other programs and run the command again"
    if known := _known(PIP_CAUSES, text):
        return known
    missing = re.search(r"no matching distribution found for ([^\s;(]+)", text, re.IGNORECASE)
    if missing:
        return _missing(missing[1], text, warnings)
    if re.search(BUILD_FAILED, text, re.IGNORECASE):
        return _build_failed(text)
    errors = [line for line in lines if re.match(r"ERROR|error:|\S*(Error|Exception|Interrupt)\b:", line)
              and not re.match(r"ERROR: (Exception:|Ignored |pip's dependency resolver)", line)]
    last = (errors or [line for line in lines if line not in warnings] or warnings or ["no reason given"])[-1]
    if re.fullmatch(r"error: [a-z-]+", last):  # newer pips: a keyword, and below it what happened
        last = " ".join([last, *lines[lines.index(last) + 1:][:2]])
    return _known(CONNECTION_CAUSES, last) or (f"pip failed ({last[:300]})", "fix that and run the command again")


def _known(causes: tuple[tuple[str, str, str], ...], text: str) -> tuple[str, str] | None:
    """Return what happened and what to do by the first pattern that matches, or None."""
    for pattern, cause, cure in causes:
        found = re.search(pattern, text, re.IGNORECASE)
        if found:
            groups = [group.strip("'\",") for group in found.groups() if group]
            return cause.format(*groups) if groups else cause.replace(" ({0})", ""), cure
    return None


def _missing(requirement: str, text: str, warnings: list[str]) -> tuple[str, str]:
    """Return why the index gave no file of a requirement: it never answered, or it has none that fits."""
    name = re.split(r"[=<>!~\[]", requirement)[0]
    own_page = re.compile(rf"/{re.sub('[-_.]+', '[-_.]+', name)}/?(?:[:\s]|$)", re.IGNORECASE)
    none = re.search(rf"requirement {re.escape(requirement)}[^\n]*\(from versions: none\)", text, re.IGNORECASE)
    # Retry(total=1) was tried once more; only after total=0 did pip give up
    given_up = [line for line in warnings if "ssl module in Python is not available" in line
                or re.search(own_page, line) and not re.search(r"Retry\(total=[1-9]", line)]
    reason = _known(CONNECTION_CAUSES, given_up[-1]) if none and given_up else None
    return reason or (f"the package index has no {requirement} for this Python or platform",
                      "check PIP_INDEX_URL, or use Python 3.11, 3.12 or 3.13")


def _build_failed(text: str) -> tuple[str, str]:
    """Return which package had to be compiled and what its build said."""
    named = [group for found in re.finditer(BUILD_FAILED, text, re.IGNORECASE) for group in found.groups() if group]
    said = re.search(BUILD_LACKS, text, re.MULTILINE)
    reason = f" ({said[0][:200]})" if said else ""
    return (f"{named[-1] if named else 'a package'} had to be compiled, and its build failed{reason}",
            "give it what it lacks, or use Python 3.11, 3.12 or 3.13, for which compiled files exist")
