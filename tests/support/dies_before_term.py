"""The ledger's engine in a worker that dies between the dead letter and the TERM.

Importing this module arms it: the process ends itself where it would have terminated a message.
"""

import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

from dialback import Context
from dialback.queue.delivery import TERM, Answerable, Settler

_confirm = Settler.confirm


async def _confirm_or_die(
    self: Settler, target: Answerable, body: bytes, *, lost: Callable[[], bool] = lambda: False
) -> None:
    if body.startswith(TERM):
        os.kill(os.getpid(), signal.SIGKILL)
    await _confirm(self, target, body, lost=lost)


Settler.confirm = _confirm_or_die  # type: ignore[method-assign]


async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
    """Never called by a request that is given up."""
    del context
    yield request
