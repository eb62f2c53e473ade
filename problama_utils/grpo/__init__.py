"""The mathematics: advantages, losses, one GRPO step by hand, PPO against GRPO on a small game."""

from problama_utils import face

__getattr__, __dir__, __all__ = face(__name__, {
    "advantages": "group_advantages",
    "losses": "clip_fractions grpo_loss value_loss",
    "head_to_head": "Settings compare mean_and_interval train",
})  # fmt: skip
