"""Looks at an experiment before its first step."""
