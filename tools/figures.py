"""Redraw the figures of notebook 01 that need no training into assets/figures, as SVG and PNG.

    python tools/figures.py

The head-to-head figure is drawn by benchmarks/ppo_vs_grpo.py, because it needs the runs.
"""

from __future__ import annotations

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from problama_utils.figures import curves as figures  # noqa: E402
from problama_utils.figures import loops as diagrams  # noqa: E402
from problama_utils.figures import try_it  # noqa: E402
from problama_utils.model import memory  # noqa: E402


def main() -> None:
    """Draw and save every figure, and say which files were written."""
    drawn = {
        "training_using_ppo": diagrams.training_using_ppo(),
        "training_using_grpo": diagrams.training_using_grpo(),
        "clip_surfaces": figures.clip_surfaces(),
        "gae_bias_variance": figures.gae_curve(figures.gae_bias_variance()),
        "kl_estimators": figures.kl_estimators(),
        "memory_llama_3_1_8b": figures.memory_bars(memory.memory_table(memory.LLAMA_3_1_8B),
                                                   "Llama-3.1-8B, GiB between steps"),
        "try_it": try_it.draw(),
    }
    for name, figure in drawn.items():
        for path in figures.save(figure, ROOT / "assets" / "figures", name):
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
