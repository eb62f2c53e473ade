"""The course's tasks by name, and tasks of your own by file and name."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from problama_utils import CourseError
from problama_utils.tasks.base import Task
from problama_utils.tasks.piqa import PIQA, load_piqa
from problama_utils.tasks.riddles import RIDDLES, load_riddles
from problama_utils.tasks.science import SCIENCE, load_science

TASKS = {task.name: task for task in (RIDDLES, PIQA, SCIENCE)}
LOADERS = {"riddles": load_riddles, "physical": load_piqa, "science": load_science}  # by the kit's own files


def get_task(task: str | Task) -> Task:
    """Return a task: itself, one of the course's by its name, or one of your own as `path/to/file.py:NAME`.

    Raises:
        CourseError: no task of that name, or a file that cannot be read or does not hold it.

    >>> get_task("piqa").chance
    0.5
    """
    if isinstance(task, Task):
        return task
    if isinstance(task, str) and task in TASKS:
        return TASKS[task]
    path, colon, name = str(task).rpartition(":")
    if not colon:
        raise CourseError(f"There is no task {task!r}. Choose one of: {', '.join(TASKS)}; or give a Task, on the "
                          "command line as my_task.py:NAME.")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path) if Path(path).is_file() else None
    if spec is None or spec.loader is None:
        raise CourseError(f"{path!r} is no Python file: give your task as my_task.py:NAME.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise CourseError(f"{path} cannot be imported ({type(error).__name__}: {error}): run it with Python by itself "
                          "and correct it.") from error
    found = getattr(module, name, None)
    if not isinstance(found, Task):
        raise CourseError(f"{path} has no Task called {name!r}: write {name} = Task(name=..., ...) in it.")
    return found
