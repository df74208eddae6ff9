"""Connections between two streams: kept for the next one to the same requester.

A requester that said so takes one stream after the other on a connection. To open and close one is
a sixth of what a short request costs, and a round trip. Source: ARCHITECTURE.md, "Connections that
are kept".
"""

import asyncio

from dialback.errors import ProtocolError, PublishError
from dialback.transport.address import Address
from dialback.transport.connection import FrameConnection
from dialback.transport.two_part import CONTROL_LIMITS, TwoPartMessage


class IdleConnections:
    """The connections of one worker that serve no stream at the moment."""

    def __init__(self, timeout: float) -> None:
        """Keep each for at most ``timeout`` seconds, which must be fewer than the requester's."""
        self._timeout = timeout
        self._idle: dict[Address, list[_Idle]] = {}
        # One for all: to set and cancel one for each costs 2 us with every request.
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return sum(map(len, self._idle.values()))

    def keep(self, address: Address, connection: FrameConnection) -> None:
        """Take over a connection whose stream is over; one that is closing is let go."""
        if not connection.both_ways:
            connection.close()
            return
        loop = asyncio.get_running_loop()
        idle = _Idle(self, address, connection, loop.time() + self._timeout)
        self._idle.setdefault(address, []).append(idle)
        if self._timer is None:  # else it is set for one that was kept earlier, and ends earlier
            self._timer = loop.call_at(idle.until, self._close_old)

    def take(self, address: Address) -> FrameConnection | None:
        """Return an open connection to a requester, the last one that was used, if there is one."""
        while of_one := self._idle.get(address):
            connection = of_one[-1].leave()
            if connection.both_ways:
                return connection
            connection.close()  # a reset was read, and is not told before the next turn
        return None

    def forget(self, idle: "_Idle") -> None:
        """One of them is taken, or closed."""
        of_one = self._idle[idle.address]
        of_one.remove(idle)
        if not of_one:
            del self._idle[idle.address]

    def close(self) -> None:
        """Close them all."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for idle in self._all():
            idle.close()

    def _all(self) -> list["_Idle"]:
        return [idle for of_one in self._idle.values() for idle in of_one]

    def _close_old(self) -> None:
        """Close those whose time is over, and look again when the next one's is."""
        loop = asyncio.get_running_loop()
        self._timer, now = None, loop.time()
        try:
            for idle in self._all():
                if idle.until <= now:
                    idle.close()
        finally:  # also for those that are left when one cannot be closed
            left = [idle.until for idle in self._all()]
            if left:
                self._timer = loop.call_at(min(left), self._close_old)


class _Idle:
    """One of them. Whatever its requester says now is that it is over.

    Attributes:
        address: Where its requester listens.
        until: The event loop's time at which it is closed.
    """

    __slots__ = ("_connection", "_owner", "address", "until")

    def __init__(
        self, owner: IdleConnections, address: Address, connection: FrameConnection, until: float
    ) -> None:
        self.address = address
        self.until = until
        self._owner: IdleConnections | None = owner
        self._connection = connection
        connection.turn_to(self, CONTROL_LIMITS)

    def leave(self) -> FrameConnection:
        """Be idle no longer; return the connection."""
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.forget(self)
        return self._connection

    def close(self) -> None:
        """Close it, unless it is taken; a second time changes nothing."""
        if self._owner is not None:
            self.leave().close()

    # --- FrameHandler -----------------------------------------------------------------

    def frame_received(self, message: TwoPartMessage) -> None:
        del message
        self.close()

    def data_parts_received(self, parts: list[bytes]) -> None:
        del parts
        self.close()

    def protocol_failed(self, error: ProtocolError) -> None:
        del error
        self.close()

    def peer_finished(self) -> None:
        self.close()

    def connection_lost(self, error: PublishError | None) -> None:
        del error
        self.close()
