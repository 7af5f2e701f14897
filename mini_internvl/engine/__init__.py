"""Answering: messages in, text out, from one image or a batch of conversations, whole or as a stream."""

from mini_internvl.engine.engine import Engine, Reply, load, load_model
from mini_internvl.engine.generate import GenerationConfig

__all__ = ["Engine", "GenerationConfig", "Reply", "load", "load_model"]
