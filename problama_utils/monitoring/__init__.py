"""What a run left: its files, its curves, the bands of several seeds, and why a reward is flat."""

from problama_utils import face

__getattr__, __dir__, __all__ = face(__name__, {
    "curves": "SLIDE_CURVES diagnose draw_curve first_and_last read_log read_run smooth",
    "run_folder": "RUN_FILE",
    "bands": "band draw_band shipped_runs",
})  # fmt: skip
