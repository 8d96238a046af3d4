"""The methods, one file each: configuration, tensors, equation. Importing this package registers them all."""

from . import ia3 as ia3
from . import loha as loha
from . import lokr as lokr
from . import lora as lora
from . import vera as vera
