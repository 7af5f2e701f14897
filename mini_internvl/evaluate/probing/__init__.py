"""An encoder judged without a language model: what its features tell of labelled pictures, and of another encoder's.

``tasks`` finds labelled pictures, ``features`` runs encoders on them and keeps what they give, ``agreement`` compares
with a teacher, ``run`` joins them: :func:`probe` is what ``minivl probe`` and programs call.
"""

from __future__ import annotations

from mini_internvl.evaluate.probing.features import Encoder, open_encoder
from mini_internvl.evaluate.probing.run import Measure, Probed, ProbeSettings, Result, probe
from mini_internvl.evaluate.probing.tasks import Task, read_task

__all__ = ["Encoder", "Measure", "ProbeSettings", "Probed", "Result", "Task", "open_encoder", "probe", "read_task"]
