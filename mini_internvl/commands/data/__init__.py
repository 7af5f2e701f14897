"""Check training data, look at it, convert it, draw it."""
