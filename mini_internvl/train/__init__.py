"""Training: mixing, batches, losses and the one loop that every stage runs through."""
