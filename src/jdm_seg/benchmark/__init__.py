"""Named benchmarks: cases, methods, tables, and the figures they must reproduce."""
