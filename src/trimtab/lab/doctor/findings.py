"""What the doctor tells of one run."""

from dataclasses import asdict, dataclass, field
from typing import Any

from trimtab.audit import Finding


@dataclass
class Sample:
    """One example as the model reads it."""

    pieces: list[tuple[str, bool]] = field(default_factory=list)
    """Its text in pieces, each with whether it carries loss."""
    target: str = ""
    """What is to be learned of it, where that is no part of the text."""


@dataclass
class Diagnosis:
    """The findings of one run, with the numbers behind them."""

    title: str
    findings: list[Finding] = field(default_factory=list)
    sample: Sample = field(default_factory=Sample)
    seconds: float | None = None
    """Estimated duration of one run."""
    memory: dict[str, Any] = field(default_factory=dict)
    """Planned peaks in bytes, and what the machine has room for."""

    def add(self, level: Any, topic: str, found: str, advice: str = "") -> None:
        """Note one finding."""
        self.findings.append(Finding(level, topic, found, advice))

    @property
    def errors(self) -> list[Finding]:
        """The findings that should stop a run."""
        return [finding for finding in self.findings if finding.level == "error"]

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a file or a pipe."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Diagnosis":
        """What `as_json` gave."""
        findings = [Finding(**finding) for finding in values["findings"]]
        pieces = [(text, carries) for text, carries in values["sample"]["pieces"]]
        sample = Sample(pieces=pieces, target=values["sample"]["target"])
        return cls(**values | {"findings": findings, "sample": sample})
