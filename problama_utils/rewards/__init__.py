"""What is paid: the slides' three rewards, and the truth tables that hold them."""

from problama_utils import face

__getattr__, __dir__, __all__ = face(__name__, {
    "slides": "CORRECT FORMAT SHORT SLIDE_REWARDS total_reward",
    "truth_tables": "REWARDS",
    "truth_view": "show_table",
})  # fmt: skip
