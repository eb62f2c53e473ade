"""The checks behind the notebooks' exercises, one module a notebook; a check never raises."""

from problama_utils import face

__getattr__, __dir__, __all__ = face(__name__, {
    "arc_evaluation": "check_format_gain check_leaderboard check_possible check_questions_needed",
    "piqa_training": "check_constant_policy check_fixed_reward",
    "reward_curves": "check_band check_difference check_hacked check_running_mean",
    "riddle_training": "check_diagnosis check_passes check_read_tagged check_silent_share",
})  # fmt: skip
