"""GGUF files for llama.cpp and the programs built on it: the language model, and encoder with projector (mmproj)."""
