"""Find and measure calcinosis on low-dose whole-body CT and STIR MRI. Importing this has no side effects."""

__version__ = "0.1.0"
