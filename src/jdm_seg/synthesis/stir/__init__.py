"""From tissue and calcium to a STIR scan."""
