"""Hands a finished method on, merged or in other formats; each result is read back and compared before it is there."""
