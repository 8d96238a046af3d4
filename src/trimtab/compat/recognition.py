"""Transformers' Trainer asks `isinstance(model, PeftModel)`: here it learns that ours is one, `peft` installed or not.

The modules that ask hold `peft`'s classes as globals. When the first model of ours is made, those globals come to mean
ours too: at once in the modules that are loaded, and in the others as soon as they are. Nothing of `peft` is changed.
"""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .. import model
from ..model import PeftModel

ASKING = ("transformers.trainer", "transformers.trainer_utils")


def make_known() -> None:
    """Let the modules that ask for `peft.PeftModel` accept ours, those not loaded yet included."""
    for name in ASKING:
        if name in sys.modules:
            accept(sys.modules[name])
    if not all(name in sys.modules for name in ASKING) and WATCHER not in sys.meta_path:
        sys.meta_path.insert(0, WATCHER)


def accept(module: ModuleType) -> None:
    """Let one module's `isinstance(..., PeftModel)` hold for our models; they are all of our one class."""
    asking: Any = module
    known = getattr(asking, "PeftModel", ())
    if PeftModel in (known if isinstance(known, tuple) else (known,)):
        return
    asking.PeftModel = (known, PeftModel)
    asking.PeftMixedModel = getattr(asking, "PeftMixedModel", ())
    asking.is_peft_available = lambda: True


class Watcher(MetaPathFinder):
    """Finds nothing itself; notices when a module that asks is imported, and teaches it once it has run."""

    def __init__(self) -> None:
        self.finding: set[str] = set()

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The spec that the other finders give, whose loader then also calls `accept`."""
        if fullname not in ASKING or fullname in self.finding:
            return None
        self.finding.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.finding.discard(fullname)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_accept(module: ModuleType) -> None:
                run(module)
                accept(module)

            spec.loader.exec_module = run_and_accept  # type: ignore[method-assign]
        return spec


WATCHER = Watcher()
model.ON_CREATE.append(make_known)
