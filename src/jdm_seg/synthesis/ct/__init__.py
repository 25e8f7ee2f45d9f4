"""From tissue and calcium to a low-dose CT scan."""
