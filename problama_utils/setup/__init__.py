"""Before and around a run: install, preflight, which profile fits this machine, where files go.

`python -m problama_utils.setup` checks it.
"""

from problama_utils import face

__getattr__, __dir__, __all__ = face(__name__, {
    ".config": "GRPOSettings course_root describe detect_profile get_profile runs_dir",
    "install": "into_notebook_host keep_runs_on_drive",
})  # fmt: skip
