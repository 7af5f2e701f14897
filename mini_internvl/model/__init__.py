"""Pure torch: the model, its configuration and its checkpoint files. Knows no tokenizer, data set or benchmark."""
