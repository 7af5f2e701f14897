"""What the model sees: images as tiles, text as tokens, conversations as ids with a mask, boxes."""
