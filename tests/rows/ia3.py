"""IA3."""

from tests.row import Row, method

REFUSED = "Embedding Conv1d attention"
FEEDFORWARD = {"target_modules": ["lin0", "lin1", "c1", "conv2"], "feedforward_modules": ["lin1", "conv2"]}
ROWS = [*method("IA3", {"feedforward_modules": []}, REFUSED), Row("IA3 feed-forward", "IA3", FEEDFORWARD)]
