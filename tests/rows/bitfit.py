"""BitFit."""

from tests.row import Row, method

ROWS = [
    *method("BITFIT", {}, sites="Conv1D Conv1d Conv2d Conv3d grouped attention norm"),
    Row("BITFIT Linear", "BITFIT", {"target_modules": ["lin0"]}),
    Row("BitFit all biases", "BITFIT", {}, "gpt2"),
]
