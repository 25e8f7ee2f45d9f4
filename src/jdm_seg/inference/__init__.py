"""From a scan to a mask on the scan's own grid, without Lightning."""
