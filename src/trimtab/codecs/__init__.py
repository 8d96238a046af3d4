"""How a frozen base is stored in fewer bits, a file each. Importing this package registers every file's sites."""

from importlib import import_module
from pkgutil import iter_modules

from .nf4 import NF4 as NF4
from .quantize import quantize_ as quantize_
from .scaled import FP8 as FP8
from .scaled import Int8 as Int8

for _found in iter_modules(__path__):
    import_module(f"{__name__}.{_found.name}")
