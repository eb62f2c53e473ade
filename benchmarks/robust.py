"""The same verdict on every machine: run what trains, samples or compares floats under other seeds and processors.

`make robust` runs whole test files over `SETTINGS`, one pytest process each: every test that takes the fixture `seed`
(tests/conftest.py) once per seed, the others once. Each outcome is written down as it comes, so a sweep that was
killed goes on; an outcome counts as long as the package and the test's file are unchanged. At the end `N of N`
is printed per test and setting and `assets/results/robust.json` is written; exit status 1 if anything failed.

The module is also the pytest plugin that does the writing (`-p robust`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOG, RESULT = ROOT / "build" / "robust.jsonl", ROOT / "assets" / "results" / "robust.json"
SEEDS = range(10)
FILES = ("head_to_head", "rollouts", "reference_step", "evaluation", "batching", "models", "likelihood", "training",
         "losses_against_trl", "quantisation", "trainer", "training_resume", "diagnosis")
# A processor with fewer features adds up in another order. ONEDNN_MAX_CPU_ISA caps the kernels of matrix products in
# bf16, MKL_ENABLE_INSTRUCTIONS those in fp32, ATEN_CPU_CAPABILITY torch's own loops.
DEFAULT = {"PROBLAMA_DTYPE": "bfloat16", "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "5000"}
# Together these four have bf16 and fp32, 1 and 2 threads, every instruction set of oneDNN and both of ATen.
SETTINGS = {
    "as it is": {},
    "old server": {"PROBLAMA_DTYPE": "float32", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
                   "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
    "laptop": {"PROBLAMA_DTYPE": "float32", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
               "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "2"},
    "bf16 emulated": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "2"},
}  # fmt: skip
# One factor changed at a time (`--settings`): for finding which one is to blame.
SINGLE = {
    "fp32": {"PROBLAMA_DTYPE": "float32"},
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "oneDNN AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "oneDNN AVX512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "ATen AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
}  # fmt: skip
ALL = SETTINGS | SINGLE


@cache
def stamp(test_file: str) -> str:
    """Return a fingerprint of all that a test's outcome rests on: the package, the shared fixtures, its own file."""
    shared = sorted((ROOT / "problama_utils").rglob("*.py"))
    own = [ROOT / name for name in ("tests/conftest.py", "tests/tiny_llamas.py", test_file)]
    parts = [path.read_bytes() for path in shared + own]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def read_outcomes() -> dict[tuple[str, str], str]:
    """Return the outcomes that still count: (setting, test id) → "passed", "failed" or "skipped"."""
    lines = LOG.read_text(encoding="utf-8").splitlines() if LOG.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return {(row["setting"], row["test"]): row["outcome"] for row in rows
            if row["stamp"] == stamp(row["test"].split("::")[0])}


class Recorder:
    """Inside pytest: leave out what has an outcome, write down each new one."""

    def __init__(self, setting: str) -> None:
        self.setting, self.outcome = setting, "passed"

    def pytest_collection_modifyitems(self, config, items) -> None:
        known = read_outcomes()
        done = [item for item in items if (self.setting, item.nodeid) in known]
        items[:] = [item for item in items if (self.setting, item.nodeid) not in known]
        config.hook.pytest_deselected(items=done)

    def pytest_runtest_logreport(self, report) -> None:
        if report.outcome != "passed" and self.outcome != "failed":
            self.outcome = report.outcome
        if report.when == "teardown":
            row = {"setting": self.setting, "test": report.nodeid, "stamp": stamp(report.nodeid.split("::")[0]),
                   "outcome": self.outcome}
            self.outcome = "passed"
            with LOG.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(row))  # in front, so that half a line of a kill is a line of its own


def pytest_configure(config) -> None:
    if name := os.environ.get("PROBLAMA_ROBUST_SETTING"):
        config.pluginmanager.register(Recorder(name))


def run_setting(name: str, files: Sequence[str], seeds: Sequence[int]) -> int:
    """Run the test files under one setting in one process; return pytest's exit status."""
    factors = {variable for changed in ALL.values() for variable in changed}
    environment = {key: value for key, value in os.environ.items() if key not in factors}
    environment |= {**DEFAULT, **ALL[name], "PROBLAMA_ROBUST_SETTING": name,
                    "PROBLAMA_TEST_SEED": " ".join(map(str, seeds)),
                    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])}
    paths = [str(path) for file in files for path in (ROOT / "tests").rglob(f"test_{file}.py")]
    command = [sys.executable, "-m", "pytest", "-p", "robust", "-q", "--tb=line", "--show-capture=no", *paths]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def summarise(outcomes: dict[tuple[str, str], str]) -> dict[str, dict[str, list[int]]]:
    """Return test (without its seed) → setting → [passed, run]; a skipped test (no harness, no GPU) is not run."""
    table: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for (setting, test), outcome in sorted(outcomes.items()):
        if outcome == "skipped":
            continue
        name = re.sub(r"(?<=\[)seed \d+-?|-seed \d+(?=[\]-])", "", test.split("/")[-1]).removesuffix("[]")
        counts = table[name].setdefault(setting, [0, 0])
        counts[0] += outcome == "passed"
        counts[1] += 1
    return dict(table)


def machine() -> dict[str, object]:
    """Return processor, the features that decide which kernels run, and cores."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    field = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    wanted = ("fma", "avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16")
    return {"processor": field.get("model name", platform.processor()), "cores": os.cpu_count(),
            "features": [name for name in wanted if name in field.get("flags", "").split()]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="*", choices=ALL, default=list(SETTINGS),
                        help="by default the four that combine every factor")
    parser.add_argument("--files", nargs="*", default=list(FILES), help="diagnosis for test_diagnosis.py, ...")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--report", action="store_true", help="run nothing, tell what the last sweep left")
    options = parser.parse_args()
    LOG.parent.mkdir(exist_ok=True)
    for name in [] if options.report else options.settings:
        print(f"== {name}: {ALL[name] or 'the default'}", flush=True)
        if (status := run_setting(name, options.files, options.seeds)) not in (0, 1, 5):  # 5: nothing left to run
            return status
    table = summarise(read_outcomes())
    red = 0
    for test, row in table.items():
        wanted = max(run for _, run in row.values())  # a setting that was cut off has fewer
        counts = {setting: row.get(setting, [0, 0])[0] for setting in options.settings}
        red += sum(passed < wanted for passed in counts.values())
        print(test, *(f"  {setting}: {passed} of {wanted}" for setting, passed in counts.items()), sep="\n")
    print(f"{len(table)} tests under {len(options.settings)} settings, {red} counts below N of N")
    record = {"date": date.today().isoformat(), "machine": machine(), "default": DEFAULT,
              "settings": {name: ALL[name] for name in options.settings},
              "versions": {"python": platform.python_version(),
                           **{name: version(name) for name in ("torch", "transformers", "trl", "peft")}},
              "passed_of_run": table}
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if red or not table else 0


if __name__ == "__main__":
    sys.exit(main())
