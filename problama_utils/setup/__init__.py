"""Before and around a run: install, preflight, what this machine has. `python -m problama_utils.setup` checks it."""

from problama_utils import face

__getattr__, __dir__, __all__ = face(__name__, {
    "install": "into_notebook_host keep_runs_on_drive",
})  # fmt: skip
