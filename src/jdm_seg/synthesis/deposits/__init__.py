"""Calcinosis, and what resembles it."""
