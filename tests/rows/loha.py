"""LoHa."""

from tests.row import Row, method

REFUSED = "Embedding Conv1D Conv3d attention"
OPTIONS = {"r": 2, "alpha": 4}
KERNEL = {"target_modules": ["conv2", "gconv"], "use_effective_conv2d": True}
ROWS = [*method("LOHA", OPTIONS, REFUSED), Row("LoHa effective kernel", "LOHA", OPTIONS | KERNEL)]
