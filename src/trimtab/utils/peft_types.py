"""The names of methods and tasks."""

from ..config import PeftType, TaskType

__all__ = ["PeftType", "TaskType"]
