"""Looks at an experiment before its first step: what would be learned, whether it fits, how long it takes."""

from trimtab.lab.doctor.examine import doctor
from trimtab.lab.doctor.findings import Diagnosis
from trimtab.lab.doctor.report import show

__all__ = ["Diagnosis", "doctor", "show"]
