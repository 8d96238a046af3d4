"""What the workbench raises."""

from trimtab.errors import TrimtabError


class LabError(TrimtabError):
    """Something the user can put right: the message says what was asked, what was found and what to do."""


class ExperimentError(LabError):
    """An experiment file with mistakes; the message lists every one of them with its line."""


class DataError(LabError):
    """Data that cannot be read, or that does not hold what the experiment asks of it."""


class AssetError(LabError):
    """An asset that is unknown, could not be fetched, or is not the file that was expected."""


class RunError(LabError):
    """A run folder that does not fit what is asked of it."""
