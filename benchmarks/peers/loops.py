"""Run a peer's main coroutine on the event loop that its first argument names."""

import asyncio
import importlib
import sys
from collections.abc import Coroutine
from typing import Any


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run ``main`` on ``asyncio``'s loop or on ``uvloop``'s."""
    factory = None
    if sys.argv[1] == "uvloop":
        factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)
