"""Evaluation: items are asked in batches, every answer is kept, scores come from the kept answers."""

from mini_internvl.evaluate.cache import AnswerCache
from mini_internvl.evaluate.run import PredictCallbacks, evaluate, predict

__all__ = ["AnswerCache", "PredictCallbacks", "evaluate", "predict"]
