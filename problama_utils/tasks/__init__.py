"""What is asked: riddles, physical questions (PIQA), science questions (ARC), and how an answer is read."""

from problama_utils import face

__getattr__, __dir__, __all__ = face(__name__, {
    "riddles": "load_riddles riddle_messages",
    "piqa": "load_piqa piqa_messages",
    "science": "load_science science_messages",
})  # fmt: skip
