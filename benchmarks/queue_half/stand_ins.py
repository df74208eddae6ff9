"""What the benchmark puts in the place of parts that it does not measure.

The back-channel in every run; leases and metrics in the runs that ask what those cost.
"""

import time
from collections.abc import Callable
from types import EllipsisType

from typing_extensions import override

from benchmarks.queue_half.ledger import Ledger
from dialback.metrics.service import ServiceMetrics
from dialback.metrics.work_handler import WorkHandlerMetrics
from dialback.outcomes import Outcome
from dialback.queue.lease import Lease, LeaseKeeper
from dialback.transport.address import Address, CallHomePolicy
from dialback.transport.connection import FrameConnection
from dialback.transport.dial import Dialer
from dialback.transport.messages import ResumeOffer
from dialback.transport.response_stream import WorkerEvent
from dialback.transport.sender import ResponseSender
from dialback.transport.two_part import Frame


class SwallowingSender(ResponseSender):
    """A response stream without a connection: what is written is dropped."""

    def __init__(self, address: Address, connection: FrameConnection) -> None:
        """Be connected. A connection of its own is not even made: it is not measured."""
        self.connection = connection
        self.address = str(address)
        self.dials = 1
        self.stopped = False
        self.killed = False
        self.superseded = False
        self.lost = None

    @property
    @override
    def peer_closed(self) -> bool:
        return True

    @override
    def on_event(self, listener: Callable[[WorkerEvent], None]) -> None:
        pass

    @override
    def write_prologue(self) -> None:
        pass

    @override
    def frame_writer(self) -> Callable[[Frame, int], bool]:
        return _swallowed

    @override
    def write_final(self, body: bytes) -> None:
        pass

    @override
    def write_end(self, body: bytes) -> None:
        pass

    @override
    async def finish(self, *, linger: float | EllipsisType | None = ...) -> None:
        pass

    @override
    def abort(self) -> None:
        pass


def _swallowed(frame: Frame, size: int) -> bool:
    del frame, size
    return False


class SwallowingDialer(Dialer):
    """Reaches everybody at once, with a :class:`SwallowingSender`."""

    def __init__(self) -> None:
        """Allow every address."""
        super().__init__(CallHomePolicy())
        self._connection: FrameConnection | None = None

    @override
    async def dial(
        self,
        address: Address,
        subject: str,
        *,
        total_timeout: float | None = None,
        offer: ResumeOffer | None = None,
    ) -> ResponseSender:
        if self._connection is None:  # needs a running event loop
            self._connection = ResponseSender().connection
        return SwallowingSender(address, self._connection)


class NoLeases(LeaseKeeper):
    """Keeps no lease: no thread, no second connection, no table."""

    @override
    async def start(self) -> None:
        pass

    @override
    async def stop(self) -> None:
        pass

    @override
    def add(self, reply: str, on_lost: Callable[[], None], *, asked: float = 0.0) -> Lease:
        return Lease(reply, on_lost, float("inf"), time.monotonic())

    @override
    def remove(self, lease: Lease) -> None:
        pass

    @override
    def came_late(self, asked: float) -> bool:
        return False

    @override
    def loop_turned(self) -> None:
        pass


class CountedMetrics(ServiceMetrics):
    """dialback's own series, and a ledger that is told of each request that was settled.

    Attributes:
        ledger: Set before the first request.
    """

    ledger: Ledger

    @override
    def count_outcome(self, outcome: str) -> None:
        super().count_outcome(outcome)
        self.ledger.settle(completed=outcome == Outcome.COMPLETED)


class NoServiceMetrics(CountedMetrics):
    """The same, of which only the ledger is touched by a request."""

    @override
    def count_outcome(self, outcome: str) -> None:
        self.ledger.settle(completed=outcome == Outcome.COMPLETED)

    @override
    def count_delivery_end(self, end: str) -> None:
        pass

    @override
    def observe_queue_wait(self, seconds: float) -> None:
        pass

    @override
    def set_slots_busy(self, n: int) -> None:
        pass

    @override
    def pulled(self) -> None:
        pass


class NoWorkHandlerMetrics(WorkHandlerMetrics):
    """Dynamo's series, of which a request only adds to one."""

    @override
    def request_began(self, request_bytes: int) -> None:
        pass

    @override
    def request_ended(self, seconds: float) -> None:
        pass

    @override
    def observe_transit(self, seconds: float) -> None:
        pass

    @override
    def observe_first_response(self, seconds: float) -> None:
        pass
