"""`stand_in()`: for this process, `import peft` means Trimtab, in other people's code too.

For libraries that make adapters themselves (`model.add_adapter` of Transformers, TRL's trainers, Diffusers' loaders).
"""

import importlib
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import state
from ..config import PEFT_FORMAT
from ..errors import CompatError
from .recognition import make_known

ROOT = __name__.partition(".")[0]
FLAT = ("auto", "config", "mapping", "mapping_func", "mixed_model", "peft_model")
"""Modules of `peft` all of whose public names Trimtab has at the top."""
OWN = ("functional", "helpers", "import_utils")
"""Modules of `peft` that Trimtab has in `compat`."""
TREES = ("tuners", "utils")
"""Packages of `peft` that Trimtab has under the same name."""
CACHED = ("is_peft_available", "is_peft_greater_or_equal")
"""Answers that Transformers remembers."""


def stand_in() -> None:
    """Take the place of `peft` in this process; to be called before anything imports it.

    Mismatches between an adapter's file and a model become warnings, as they are there (`strict=False`). Raises
    `CompatError` when PyPI `peft` is loaded already: classes of both would be in use.
    """
    loaded = sys.modules.get("peft")
    if isinstance(loaded, StandIn):
        return
    if loaded is not None:
        raise CompatError(
            "`peft` is imported already, so nothing can stand in for it; call trimtab.compat.stand_in() first of all, "
            "before `import transformers` or whatever imports it"
        )
    front = StandIn()
    sys.modules["peft"] = front
    for name in FLAT:
        sys.modules[f"peft.{name}"] = front
    for name in OWN:
        front.provide(name, f"{ROOT}.compat.{name}")
    for tree in TREES:
        front.provide(tree, f"{ROOT}.{tree}")
        for found in pkgutil.walk_packages(sys.modules[f"peft.{tree}"].__path__, f"{ROOT}.{tree}."):
            importlib.import_module(found.name)
        for ours in [name for name in sys.modules if name.startswith(f"{ROOT}.{tree}.")]:
            front.provide(ours.removeprefix(f"{ROOT}."), ours)
    sys.meta_path.insert(0, Version())
    state.STRICT.on = False
    remembered = sys.modules.get("transformers.utils.import_utils")
    for name in CACHED if remembered else ():
        getattr(remembered, name).cache_clear()
    make_known()


class StandIn(ModuleType):
    """The module `peft`: every public name of Trimtab, and the version whose files and API it speaks."""

    def __init__(self) -> None:
        super().__init__("peft", "Trimtab, standing in for Hugging Face PEFT.")
        self.__version__ = PEFT_FORMAT
        self.__path__: list[str] = []
        self.__file__ = sys.modules[ROOT].__file__
        self.__spec__ = ModuleSpec("peft", None, origin=self.__file__, is_package=True)

    def provide(self, name: str, ours: str) -> None:
        """Let `peft.<name>` be one of our modules."""
        sys.modules[f"peft.{name}"] = module = importlib.import_module(ours)
        if "." not in name:
            setattr(self, name, module)

    def __getattr__(self, name: str) -> Any:
        return self if name in FLAT else getattr(sys.modules[ROOT], name)


class Version(DistributionFinder):
    """Tells `importlib.metadata` that a `peft` is installed, and its version."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """No module is found here."""

    def find_distributions(
        self,
        context: DistributionFinder.Context = DistributionFinder.Context(),  # noqa: B008
    ) -> Iterable[Distribution]:
        """The one distribution, when it is asked for by name."""
        return self._distributions(context.name)

    def _distributions(self, name: str | None) -> Iterator[Distribution]:
        if name == "peft":
            yield Installed()


class Installed(Distribution):
    """The distribution "peft", as Trimtab stands in for it."""

    def read_text(self, filename: str) -> str | None:
        """The name and version, in the file where they are looked for."""
        text = f"Metadata-Version: 2.1\nName: peft\nVersion: {PEFT_FORMAT}\n"
        return text if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Path:
        """Where a file of the distribution would be."""
        return Path(__file__).parent / path
