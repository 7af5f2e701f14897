"""PTB tokens: interim."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PUNCTUATION = {"''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"}


def tokenize(captions: Sequence[str]) -> list[str]:
    """Interim."""
    return [
        " ".join(t for t in re.findall(r"\w+(?:[-.]\w+)*|[^\w\s]", caption.lower()) if t not in _PUNCTUATION)
        for caption in captions
    ]
