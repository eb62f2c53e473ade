"""A run: `run_grpo` trains one task with one profile into a run folder, and resumes after an interruption."""

from problama_utils import face

__getattr__, __dir__, __all__ = face(__name__, {
    "run": "run_grpo",
    "problems": "training_problems",
    "checks": "check_lengths prompt_lengths",
    "packing": "draw_packing",
    "comparison": "compare_with_trl",
})  # fmt: skip
