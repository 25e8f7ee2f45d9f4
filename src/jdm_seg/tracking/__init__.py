"""What became of every lesion between two scans of one subject."""
