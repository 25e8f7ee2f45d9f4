"""Metrics as pure functions over NumPy arrays; undefined is NaN, never 0 or 1 by convention."""
