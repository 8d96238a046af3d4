"""Runs an experiment again, and says how near the second result is to the first, and why it may differ."""
