"""What a worker process tells its supervisor about its leases, and what follows when it dies.

Lines of JSON, one report each. The supervisor keeps one table for each process. What is still
in it when the process is dead goes back to the queue at once, unless the lease may have ended
already: then another worker may have the message. No I/O here.

Source: jetstream section 2.1 (a NAK from another process), overview section 8.
"""

from dataclasses import dataclass
from typing import TypeAlias

import msgspec


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """The process has begun to pull."""


class Held(msgspec.Struct, frozen=True, array_like=True, tag="held"):
    """The process holds a delivery, or goes on holding it.

    Attributes:
        reply: The delivery's ack subject.
        confirmed: Monotonic time of the last confirmation; one clock for all processes.
    """

    reply: str
    confirmed: float


class Released(msgspec.Struct, frozen=True, array_like=True, tag="released"):
    """The delivery is settled, or the lease was lost."""

    reply: str


class Forget(msgspec.Struct, frozen=True, array_like=True, tag="forget"):
    """Reports were lost: what was said before may be wrong. Also the last word of a clean end.

    Leases that are still held are reported again when they are renewed.
    """


Report: TypeAlias = Ready | Held | Released | Forget

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)


def as_line(report: Report) -> bytes:
    """Return a report as one line."""
    return _encoder.encode(report) + b"\n"


@dataclass(frozen=True, slots=True)
class HeldLease:
    """One delivery that a dead process held.

    Attributes:
        reply: Its ack subject.
        until: Monotonic time at which its lease may end.
    """

    reply: str
    until: float


class HeldLeases:
    """The leases of one worker process, as far as its supervisor knows."""

    def __init__(self, ack_wait: float) -> None:
        """Know nothing yet; ``ack_wait`` is seconds a lease lasts after a confirmation."""
        self._ack_wait = ack_wait
        self._confirmed: dict[str, float] = {}
        self._rest = b""
        self.ready = False

    def feed(self, data: bytes) -> None:
        """Take what came from the process: whole lines, and parts of them."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                report = _decoder.decode(line)
            except msgspec.DecodeError:
                continue  # torn: the process says Forget next
            self._apply(report)

    def _apply(self, report: Report) -> None:
        match report:
            case Ready():
                self.ready = True
            case Held(reply=reply, confirmed=confirmed):
                self._confirmed[reply] = confirmed
            case Released(reply=reply):
                self._confirmed.pop(reply, None)
            case Forget():
                self._confirmed.clear()

    def alive(self, now: float) -> list[HeldLease]:
        """Return the leases that cannot have ended by ``now`` (monotonic seconds)."""
        held = [
            HeldLease(reply, confirmed + self._ack_wait)
            for reply, confirmed in self._confirmed.items()
        ]
        return [lease for lease in held if now < lease.until]

    def __len__(self) -> int:
        return len(self._confirmed)
