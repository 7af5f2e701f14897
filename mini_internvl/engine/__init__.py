"""Answering: messages in, text out, from one image or a batch of conversations, whole or as a stream."""

from mini_internvl.engine.engine import Engine
from mini_internvl.engine.loading import load, load_model
from mini_internvl.engine.reply import Reply
from mini_internvl.engine.sampling import GenerationConfig

__all__ = ["Engine", "GenerationConfig", "Reply", "load", "load_model"]
