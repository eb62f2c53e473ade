"""No Problama's helper package: GRPO on a small Llama, one folder a stage, data flowing downwards.

    tasks        what is asked: riddles, piqa, science, and a task of your own
    rewards      what is paid
    grpo         the mathematics: advantages, losses, one step by hand
    model        the policy: loading, adapters, sampling, scoring, export
    training     a run: `run_grpo`, resumable
    monitoring   a run's log: curves, diagnosis
    evaluation   did it help: held-out accuracy, records, tables
    figures      drawings that are not the lesson itself
    exercises    the checks behind the notebooks' exercises
    engine       speed on a CPU; no notebook opens it
    setup        before and around a run: install, preflight, what the machine has

Each folder's `__init__.py` names what notebooks use and imports a module only when a name of it is first asked for.
`config` holds the profiles. This file itself needs only the standard library.
"""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from types import TracebackType

__version__ = "0.1.0"
HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


class CourseError(ValueError):
    """A mistake or missing piece that the reader can fix; the message says how.

    It is shown as that one sentence; every other exception keeps its traceback: it is our fault, not the reader's.
    """

    def _render_traceback_(self) -> list[str]:  # asked for by IPython
        return [f"{type(self).__name__}: {self}"]


_default_hook = sys.excepthook


def _one_line_hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, CourseError):
        print(f"{kind.__name__}: {error}", file=sys.stderr)
    else:
        _default_hook(kind, error, trace)


if sys.excepthook is sys.__excepthook__:  # a debugger or IDE that has set its own hook keeps it
    sys.excepthook = _one_line_hook


def tell(sentence: str) -> None:
    """Tell the reader one thing on stderr, above a progress bar where one is drawn."""
    bars = sys.modules.get("tqdm")
    show = bars.tqdm.write if bars else lambda text, file: print(text, file=file, flush=True)
    show(f"No Problama: {sentence}", file=sys.stderr)


def face(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a room: what it offers, imported when it is asked for.

    `names` maps a module of the room (".config": one beside it) to the names that it gives, separated by spaces.
    """
    where = {name: module for module, offered in names.items() for name in offered.split()}

    def __getattr__(name: str) -> object:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f".{where[name]}", package), name)

    return __getattr__, lambda: sorted(where), sorted(where)


def hide_card() -> None:
    """Hide every GPU from torch where profile `cpu` is asked for; say what to do where torch has found one already.

    torch looks once: the variables count only before its first look. Trainings keep off the card in either case.
    """
    if not hides_card():
        return
    os.environ.update(dict.fromkeys(HIDING, ""))
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        tell("torch had found the GPU before profile cpu could hide it. The course trains on the CPU all the same; to "
             "hide the GPU from everything else, restart the kernel and set PROBLAMA_PROFILE=cpu first.")


def hides_card() -> bool:
    """Tell whether PROBLAMA_PROFILE asks for the profile that uses no GPU."""
    return os.environ.get("PROBLAMA_PROFILE", "").strip() == "cpu"


# Read by torch's OpenMP when torch is loaded, in Jupyter's kernels too: how long a waiting thread spins before it
# sleeps. On two cores, alone and beside one busy process, a GRPO step took 2.3 and over 20 s with OpenMP's own 300,000
# turns, 2.6 and 5.4 s with 5,000, 3.9 and 3.5 s without spinning (2026-11-25). OMP_WAIT_POLICY overrides.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
hide_card()  # here, because every module that imports torch comes after this line

# A console that lacks a sign (Windows' cp1252 has no check mark) shows ? in its place instead of ending the program.
for _stream in (sys.stdout, sys.stderr):
    if getattr(_stream, "errors", "") == "strict" and hasattr(_stream, "reconfigure"):
        _stream.reconfigure(errors="replace")
