"""The version of Trimtab, written down here and nowhere else."""

__version__ = "0.1.0"
