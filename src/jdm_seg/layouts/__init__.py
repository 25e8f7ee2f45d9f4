"""Data sets between the layouts of the field: MONAI datalist, nnU-Net raw, BIDS, flat folders, 3D Slicer."""
