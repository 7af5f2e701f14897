"""Evaluation: items are asked in batches, every answer is kept, scores come from the kept answers."""

from mini_internvl.evaluate.run import evaluate, predict

__all__ = ["evaluate", "predict"]
