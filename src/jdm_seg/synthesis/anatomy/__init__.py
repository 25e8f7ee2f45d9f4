"""Procedural bodies."""
