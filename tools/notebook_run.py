"""One notebook, executed in a kernel of its own and measured; where it stops, the place, the cause and the cure.

A cell may fail, end its kernel, take all memory or never return, and a reader may press Ctrl-C: each ends in a
sentence, and nothing of the notebook runs on.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import nbformat
import psutil
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from problama_utils import CourseError
from problama_utils.setup.machine import _memory

CELL_TIMEOUT = 3600  # seconds; a hung cell must not hang a class
_QUIET = logging.getLogger(f"{__name__}.quiet")  # nbclient tells a death three times; the runner tells it once
_QUIET.disabled = True


def read_notebook(path: Path) -> NotebookNode:
    """Return a notebook that can be executed here.

    Raises:
        CourseError: the file cannot be read, is no notebook, or asks for a kernel that is not installed.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
        whole = all(isinstance(cell.source, str) and cell.cell_type for cell in notebook.cells)
        kernel = notebook.metadata.get("kernelspec", {}).get("name", "python3")
    except OSError as error:
        raise CourseError(f"{path.name} cannot be read ({error.strerror}): check the file.") from None
    except Exception as error:  # nbformat meets a file of another kind with many kinds of exception
        whole, kernel = False, type(error).__name__
    if not whole or not isinstance(kernel, str):
        raise CourseError(f"{path.name} is no notebook ({kernel}): a JSON file with cells was expected; restore it, as "
                          f"with `git checkout -- notebooks/{path.name}`.") from None
    try:
        KernelSpecManager().get_kernel_spec(kernel)
    except NoSuchKernel:
        raise CourseError(f"{path.name} asks for the kernel {kernel!r}, which is not installed here: open it with "
                          "`make lab`, choose a Python kernel and save it.") from None
    return notebook


class PeakMemory(threading.Thread):
    """Watch the resident memory of a process and its children, four times a second.

    `gb` is the highest sum seen, `free_gb` what the machine had left when the process was last seen.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.gb, self.free_gb, self.family = 0.0, available_gb(), {psutil.Process(pid)}
        self._process, self._stop_now = psutil.Process(pid), threading.Event()

    def run(self) -> None:
        while not self._stop_now.wait(0.25):
            try:
                family = [self._process, *self._process.children(recursive=True)]
                if self._process.status() == psutil.STATUS_ZOMBIE:  # what is free now was not free when it died
                    return
            except psutil.Error:
                return
            held = 0.0
            for member in family:
                with contextlib.suppress(psutil.Error):  # ended between two lines of this loop
                    held += member.memory_info().rss / 1e9
            self.gb, self.free_gb, self.family = max(self.gb, held), available_gb(), self.family | set(family)

    def stop(self) -> None:
        self._stop_now.set()


def available_gb() -> float:
    """Return the memory that is free on this machine, or below its container's limit."""
    free = psutil.virtual_memory().available / 1e9
    return max(0.0, min(free, _memory()[1] or free))


class Progress:
    """One line per notebook: what it is doing while it runs (in a terminal), minutes and memory when it is done."""

    def __init__(self, number: int, of: int, name: str, title: str) -> None:
        self._head, self._live = f"[{number}/{of}] {name:<22}", sys.stdout.isatty()
        if not self._live:
            print(f"{self._head} {title} ...", flush=True)

    def doing(self, what: str, started: float) -> None:
        if self._live:
            minutes = (time.perf_counter() - started) / 60
            print(f"\r\033[K{self._head} {minutes:4.1f} min  {what[:70]}", end="", flush=True)

    def done(self, minutes: float, gb: float, word: str = "done") -> None:
        start = "\r\033[K" if self._live else ""
        print(f"{start}{self._head} {minutes:4.1f} min  {gb:3.1f} GB  {word}", flush=True)


class NotebookStopped(CourseError):
    """A notebook did not come to its end; `measured` holds the minutes and the memory until then."""

    word, status = "FAILED", 1

    def __init__(self, message: str, measured: dict[str, float]) -> None:
        super().__init__(message)
        self.measured = measured


class NotebookInterrupted(NotebookStopped):
    """Ctrl-C while a notebook ran; its kernel has been ended."""

    word, status = "INTERRUPTED", 130


class Kernel:
    """What is known of the kernel in which a notebook runs: its process, its memory, the heading it has reached."""

    def __init__(self, client: NotebookClient, progress: Progress) -> None:
        self.client, self.progress, self.started = client, progress, time.perf_counter()
        self.heading, self.watch, self.process = "", None, None
        client.on_cell_start = self.before_cell

    def before_cell(self, cell: NotebookNode, cell_index: int) -> None:
        if self.watch is None and self.client.km.provisioner.pid:
            with contextlib.suppress(psutil.Error):  # gone already: the next message to it will tell
                self.process = self.client.km.provisioner.process
                self.watch = PeakMemory(self.process.pid)
                self.watch.start()
        found = re.findall(r"^#{1,3}\s+(.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else []
        self.heading = found[-1] if found else self.heading
        self.progress.doing(self.heading, self.started)

    def measured(self) -> dict[str, float]:
        return {"minutes": round((time.perf_counter() - self.started) / 60, 2),
                "peak_memory_gb": round(self.watch.gb, 2) if self.watch else 0.0}

    def place(self) -> str:
        return f" below {self.heading!r}" if self.heading else ""

    def end(self) -> None:
        """End the kernel's process and all that it has started, in any state."""
        if self.watch:
            self.watch.stop()
        pid = self.process.pid if self.process else getattr(getattr(self.client.km, "provisioner", None), "pid", None)
        kill_group = getattr(os, "killpg", None)  # Windows has none
        if pid and kill_group:  # a kernel leads a process group of its own, its orphans included
            with contextlib.suppress(OSError):
                kill_group(pid, signal.SIGKILL)
        family = self.watch.family if self.watch else set()
        for member in family:
            with contextlib.suppress(psutil.Error):
                member.kill()
        psutil.wait_procs(family, timeout=0.5)

    def why_stopped(self, name: str, error: Exception) -> str:
        """Return the sentences on a notebook that stopped: where, what happened, with how much memory, what to do."""
        look = "open it with `make lab` to see where"
        if isinstance(error, CellExecutionError):
            told = " ".join(f"{error.ename}: {error.evalue}".split())[:400]
            return f"{name} stopped: {told}, in a cell{self.place()}. {look.capitalize()}"
        if isinstance(error, CellTimeoutError):
            what = f"a cell did not return within {self.client.timeout} seconds"
            cure = (f"If it only needs longer, run `python -m tools.course --cell-timeout "
                    f"{2 * self.client.timeout}`; otherwise {look}")
        elif isinstance(error, DeadKernelError):
            what, cure = self._death()
        else:  # a kernel that does not come up: jupyter_client has no error of its own for that
            what = f"its kernel cannot be reached ({' '.join(str(error).split())[:200]})"
            cure = "Close other programs and try again; `python -m problama_utils.setup` looks for what is missing"
        memory = (f" Memory: at most {self.watch.gb:.1f} GB until then, with {self.watch.free_gb:.1f} GB free on the "
                  "machine." if self.watch else "")
        return f"{name} stopped{self.place()}: {what}.{memory} {cure}"

    def _death(self) -> tuple[str, str]:
        """Return what ended the kernel, by its exit status, and the cure."""
        status = self.process.poll() if self.process else None
        if status in (-9, 137):
            return ("its kernel was killed, as the system does when memory runs out",
                    "Close other programs or take a machine with more memory, then run `make course` again")
        if status is not None and status >= 0:
            return (f"a cell ended its kernel (exit status {status})",
                    "Take the call out that does so, such as os._exit or quit; `make lab` opens the notebook")
        crashed = f"its kernel crashed (signal {-status})" if status else "its kernel crashed"
        return crashed, "Run `make course` again; if it crashes there again, run its cells one by one with `make lab`"


def execute(path: Path, progress: Progress, cell_timeout: int = CELL_TIMEOUT) -> tuple[NotebookNode, dict[str, float]]:
    """Execute one notebook in its own kernel, its folder as working directory; each cell has `cell_timeout` seconds.

    Returns:
        The executed notebook and `{"minutes", "peak_memory_gb"}`.

    Raises:
        NotebookStopped: a cell failed, ended its kernel, took too long, or no kernel came up. Nothing of it runs on.
        CourseError: the file is no notebook.
    """
    notebook = read_notebook(path)
    client = NotebookClient(notebook, timeout=cell_timeout, resources={"metadata": {"path": str(path.parent)}},
                            extra_arguments=["--log-level=ERROR"], log=_QUIET)  # the kernel's own notes are not ours
    kernel, failures = Kernel(client, progress), []

    def work() -> None:
        try:
            client.execute()
        except BaseException as error:  # it belongs to the main thread
            failures.append(error)

    # Not in the main thread: there nbclient takes Ctrl-C for itself and leaves a half-closed kernel behind.
    worker = threading.Thread(target=work, daemon=True)
    try:
        worker.start()
        while worker.is_alive():
            worker.join(0.2)  # without a limit, Windows does not hear Ctrl-C
    except KeyboardInterrupt:
        patience = time.monotonic() + 10
        while worker.is_alive() and time.monotonic() < patience:  # the kernel may just be starting
            kernel.end()
            worker.join(0.2)
        raise NotebookInterrupted(f"Interrupted in {path.name}{kernel.place()}: its kernel has been ended",
                                  kernel.measured()) from None
    finally:
        measured = kernel.measured()
        kernel.end()
        atexit.unregister(client._cleanup_kernel)  # nbclient leaves it there for a kernel that did not come up
    for error in failures:
        if isinstance(error, CellExecutionError | CellTimeoutError | RuntimeError | OSError):
            raise NotebookStopped(kernel.why_stopped(path.name, error), measured) from error
        raise error
    return notebook, measured
