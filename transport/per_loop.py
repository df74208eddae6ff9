"""Objects that the connections of one event loop share."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary, ref

_Shared = TypeVar("_Shared")


class PerLoop(Generic[_Shared]):
    """One object for each event loop, for as long as somebody uses it.

    Nothing is kept alive: neither a loop that has ended, nor what was left waiting on it.
    """

    def __init__(self, make: Callable[[], _Shared]) -> None:
        """Make nothing yet; ``make`` is called for each loop, and again when nobody is left."""
        self._make = make
        self._of: WeakKeyDictionary[asyncio.AbstractEventLoop, ref[_Shared]] = WeakKeyDictionary()

    def of(self, loop: asyncio.AbstractEventLoop) -> _Shared:
        """Return the one of a loop; the caller keeps it."""
        known = self._of.get(loop)
        shared = known() if known is not None else None
        if shared is None:
            shared = self._make()
            self._of[loop] = ref(shared)
        return shared
