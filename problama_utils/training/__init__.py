"""A run: `run_grpo` takes a task and a profile to a run folder, and goes on where it was cut off."""

from problama_utils import face

__getattr__, __dir__, __all__ = face(__name__, {
    "run": "run_grpo",
    "problems": "training_problems",
    "checks": "check_lengths prompt_lengths",
    "packing": "draw_packing",
    "comparison": "compare_with_trl",
})  # fmt: skip
