"""The workbench: one file describes an experiment; it is checked, run, measured and reported.

It imports the core, never the other way.
"""
