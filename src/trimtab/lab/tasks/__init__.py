"""What can be learned: a file here is a task, and its name is the task's name in an experiment file."""

import pkgutil
from functools import cache
from importlib import import_module

from trimtab.lab.tasks.base import Task


@cache
def all_tasks() -> dict[str, type[Task]]:
    """Every task by its name: the `TASK` of each file beside this one."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if module.name not in ("base", "loading")]
    return {name: import_module(f"{__name__}.{name}").TASK for name in sorted(names)}
