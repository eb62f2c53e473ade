"""Drawings that are not the lesson itself; each module is imported by name."""

from problama_utils import face

__getattr__, __dir__, __all__ = face(__name__, {
    "flow": "draw_flow",
})  # fmt: skip
