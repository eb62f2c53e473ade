"""No Problama's helper package; the modules are imported one by one."""

import os
import sys

from problama_utils import gpu

# Read by torch's OpenMP when torch is loaded, by Jupyter's kernels too: a thread that waits sleeps instead of spinning.
# Beside any busy process, spinning threads made the same work more than ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Here, because torch looks for a GPU only once, and every module that imports torch comes after this line.
if gpu.hides_card():
    gpu.hide_card()

# A console that lacks a sign (Windows' cp1252 has no check mark) shows ? in its place instead of ending the program.
for _stream in (sys.stdout, sys.stderr):
    if getattr(_stream, "errors", "") == "strict" and hasattr(_stream, "reconfigure"):
        _stream.reconfigure(errors="replace")
