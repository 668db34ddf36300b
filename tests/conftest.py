"""Lets tests import ``tests.support``, however pytest is started."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parent.parent)
if _ROOT not in sys.path:
    sys.path.insert(0, _ROOT)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs with Ctrl-C ignored, and what we start would inherit that:
    # the commands whose answer to Ctrl-C is tested could never hear it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
