"""No Problama's helper package; the modules are imported one by one."""

import os

# Read by torch's OpenMP when torch is loaded, by Jupyter's kernels too: a thread that waits sleeps instead of spinning.
# Beside any busy process, spinning threads made the same work more than ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
