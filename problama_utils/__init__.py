"""No Problama's helper package; the modules are imported one by one."""

import os
import sys

from problama_utils import gpu

# Read by torch's OpenMP when torch is loaded, in Jupyter's kernels too: how long a waiting thread spins before it
# sleeps. On two cores, alone and beside one busy process, a GRPO step took 2.3 and over 20 s with OpenMP's own 300,000
# turns, 2.6 and 5.4 s with 5,000, 3.9 and 3.5 s without spinning (2026-11-25). OMP_WAIT_POLICY overrides.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
# Here, because torch looks for a GPU only once, and every module that imports torch comes after this line.
if gpu.hides_card():
    gpu.hide_card()

# A console that lacks a sign (Windows' cp1252 has no check mark) shows ? in its place instead of ending the program.
for _stream in (sys.stdout, sys.stderr):
    if getattr(_stream, "errors", "") == "strict" and hasattr(_stream, "reconfigure"):
        _stream.reconfigure(errors="replace")
