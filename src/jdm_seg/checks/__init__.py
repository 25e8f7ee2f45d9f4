"""What is wrong with a scan or a data set, in plain words, before anything is computed from it."""
