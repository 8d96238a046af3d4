"""Starts for LoRA, one file each. Importing this package registers every file in it in `method.STARTS`."""

from importlib import import_module
from pkgutil import iter_modules

for _found in iter_modules(__path__):
    import_module(f"{__name__}.{_found.name}")
