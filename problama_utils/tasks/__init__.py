"""What is asked: riddles, physical questions (PIQA), science questions (ARC), and how an answer is read."""

from problama_utils import face

__getattr__, __dir__, __all__ = face(__name__, {
    "problems": "load_physical load_riddles load_science",
    "prompts": "piqa_messages riddle_messages science_messages",
})  # fmt: skip
