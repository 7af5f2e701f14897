"""What the model sees: pictures as tiles, text as tokens, conversations as ids with a mask, boxes."""
