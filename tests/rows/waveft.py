"""WaveFT."""

from tests.row import LINEAR, Row, method

OPTIONS = {"n_frequency": 20}
REFUSED = "Embedding Conv1d Conv2d Conv3d grouped attention"
ROWS = [
    *method("WAVEFT", OPTIONS, REFUSED),
    Row("WaveFT, no transform", "WAVEFT", OPTIONS | {"use_idwt": False} | LINEAR),
    Row("WaveFT, in proportion", "WAVEFT", OPTIONS | {"proportional_parameters": True} | LINEAR),
]
