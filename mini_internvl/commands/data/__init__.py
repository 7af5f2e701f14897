"""Make training data, and list what it needs."""
