"""The turns of an event loop in which anything is written, counted.

A stream that writes in each of them is faster than one that pauses for as long as a turn lasts:
the time between their writes may be the same.
"""

import asyncio
from typing import Final

from dialback.transport.per_loop import PerLoop


class Turns:
    """Those of one loop, shared by its connections.

    Attributes:
        number: How many are over.
    """

    __slots__ = ("__weakref__", "_noted", "number")

    def __init__(self) -> None:
        """Count; use :data:`TURNS`."""
        self.number = 0
        self._noted = False

    def written(self, loop: asyncio.AbstractEventLoop) -> None:
        """Something is written in this turn of the loop."""
        if not self._noted:
            self._noted = True
            loop.call_soon(self._over)

    def _over(self) -> None:
        self._noted = False
        self.number += 1


TURNS: Final = PerLoop(Turns)
"""Those of each event loop."""
