"""From a run folder to a model folder, with proof."""
