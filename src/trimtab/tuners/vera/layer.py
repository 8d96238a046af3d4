"""The layers of VeRA, by the kind of base layer."""

from ...compat.faces import VeraLayer, on

Linear = on("linear", VeraLayer, "Linear")

__all__ = ["Linear", "VeraLayer"]
