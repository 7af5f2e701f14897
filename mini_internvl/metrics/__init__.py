"""Metrics as pure functions: caption scores without Java, and control-signal errors. Importing this costs nothing."""
