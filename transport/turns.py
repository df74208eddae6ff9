"""The turns of an event loop in which anything is written, counted.

A stream that writes in each of them is faster than one that pauses for as long as a turn lasts:
the time between their writes may be the same.
"""

import asyncio
from typing import Final
from weakref import WeakKeyDictionary


class Turns:
    """Those of one loop, shared by its connections.

    Attributes:
        number: How many are over.
    """

    __slots__ = ("_loop", "_noted", "number")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Count; use :func:`turns_of`."""
        self.number = 0
        self._loop = loop
        self._noted = False

    def written(self) -> None:
        """Something is written in this turn."""
        if not self._noted:
            self._noted = True
            self._loop.call_soon(self._over)

    def _over(self) -> None:
        self._noted = False
        self.number += 1


_OF: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, Turns]] = WeakKeyDictionary()


def turns_of(loop: asyncio.AbstractEventLoop) -> Turns:
    """Return what counts the turns of a loop."""
    turns = _OF.get(loop)
    if turns is None:
        turns = _OF[loop] = Turns(loop)
    return turns
