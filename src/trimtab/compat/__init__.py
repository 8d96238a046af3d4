"""What Transformers, Accelerate, Diffusers and TRL look for in `peft`.

`faces`, `functional`, `helpers` and `utilities` hold what `trimtab.tuners` and `trimtab.utils` give out under the names
that other people's code imports; `recognition` makes Trainer know our models; `stand_in()` takes the place of `peft`.
"""

from .recognition import make_known
from .standing_in import stand_in

__all__ = ["make_known", "stand_in"]
