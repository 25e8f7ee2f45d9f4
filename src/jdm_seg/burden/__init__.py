"""Clinical figures of one scan."""
