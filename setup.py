"""Everything is in pyproject.toml but one step: a wheel carries the course's data inside the package.

In a checkout the data stay in assets/, where `config.course_root` finds them; a wheel has no checkout around it.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

TRAVELS = ("data/*.jsonl", "results/course.json", "runs/*/*.csv", "runs/*/*.json")  # not the adapters: 20 MB


class BuildWithAssets(build_py):
    def run(self) -> None:
        super().run()
        for pattern in () if self.editable_mode else TRAVELS:
            for path in Path("assets").glob(pattern):
                target = Path(self.build_lib, "problama_utils", path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


setup(cmdclass={"build_py": BuildWithAssets})
