"""Train clean classifiers on data that may be poisoned."""
