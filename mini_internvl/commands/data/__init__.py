"""Make and look at training data."""
