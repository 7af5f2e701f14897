"""The stack on which a thread handles signals, kept as it was while OpenVINO compiles.

OpenVINO's CPU plugin gives the thread that makes it a stack of its own for signals and takes that back when it goes.
Plugins that do not go in the reverse order of their making leave the thread with memory that is gone, and the next
signal, such as the end of a child process, ends the whole process. A plugin that finds another stack leaves it alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import sys
from collections.abc import Iterator

logger = logging.getLogger(__name__)


class _Stack(ctypes.Structure):
    """``stack_t`` of Linux, the only system on which the plugin does this."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextlib.contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Give this thread its stack for signals back in the end, where the system takes it."""
    if sys.platform != "linux":
        yield
        return
    sigaltstack = ctypes.CDLL(None).sigaltstack
    before = _Stack()
    sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        if sigaltstack(ctypes.byref(before), None):
            logger.warning("the stack for signals could not be given back after OpenVINO compiled a model")
