"""Starts for LoRA, one file each. Importing this package registers them all in `method.STARTS`."""

from . import olora as olora
from . import orthogonal as orthogonal
from . import pissa as pissa
