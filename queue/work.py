"""What a worker has in hand: one message, its newest delivery, and how far it has got.

A server that is killed forgets the last milliseconds of its consumers, so it delivers messages
again that are still being worked on here, and with the number they had. What becomes of such a
repetition depends only on how far the work on it has got. No I/O.

Source: jetstream section 2.1.
"""

import asyncio
import time
from enum import Enum, auto
from typing import Final

import msgspec
from msgspec.structs import replace
from nats.aio.msg import Msg

from dialback.outcomes import Delivery, Revoked
from dialback.queue.delivery import DeliveryInfo
from dialback.queue.lease import Lease
from dialback.queue.note import Stored, note_key


class Phase(Enum):
    """How far the work on a delivery has got."""

    SERVING = auto()
    """Its request runs, or its dead letter is not stored yet."""
    REMOVING = auto()
    """Its request has ended: all that is left to do is to remove the message."""
    RETURNING = auto()
    """It is being handed back, now or after a delay."""
    OVER = auto()
    """Nothing more is said about it to the server."""


_NOTHING_NOTED: Final = Stored()


def key_of(info: DeliveryInfo) -> str:
    """Return what identifies a message, and is the key of the note on it."""
    return note_key(info.stream, info.sequence, info.published_ns)


class Work(msgspec.Struct, eq=False):
    """One message that is being worked on.

    Attributes:
        message: The message as it was last delivered, to be answered.
        info: What its reply subject says.
        delivery: The delivery, as the ingress sees it.
        lease: The lease of the last delivery.
        phase: How far it has got.
        task: Does the work; set as soon as it runs.
        noted: The message's note as it was read.
        earlier: Numbers of deliveries that this work began with or went on in, all below the
            last one's: none of them ended with its worker.
        given_up: Whether another work has the message now.
        settling: Whether its outcome is known: a drain does not cancel it any more.
        started: Monotonic time, seconds.
    """

    message: Msg
    info: DeliveryInfo
    delivery: Delivery
    lease: Lease
    phase: Phase = Phase.SERVING
    task: "asyncio.Task[None] | None" = None
    noted: Stored = _NOTHING_NOTED
    earlier: frozenset[int] = frozenset()
    given_up: bool = False
    settling: bool = False
    started: float = msgspec.field(default_factory=time.monotonic)

    @property
    def reply(self) -> str:
        """The ack subject of the last delivery: what answers go to."""
        return self.message.reply

    @property
    def adopts(self) -> bool:
        """Whether a repetition of the message belongs to this work.

        A removal goes on even after a lost lease: the message is ours again, and its request has
        ended. What is handed back is not kept, and what was interrupted cannot go on.
        """
        if self.phase is Phase.REMOVING:
            return True
        return self.phase is Phase.SERVING and not self.expired()

    def expired(self) -> bool:
        """Whether another worker, or another work of this one, may have the message by now."""
        return self.given_up or self.lease.expired(time.monotonic())

    def adopt(self, message: Msg, info: DeliveryInfo, lease: Lease) -> None:
        """Go on with a repetition; from now on that is the delivery to be settled."""
        numbers = self.earlier | {self.info.number}
        self.earlier = frozenset(number for number in numbers if number < info.number)
        self.message, self.info, self.lease = message, info, lease
        self.delivery = replace(self.delivery, number=info.number)

    def give_up(self) -> None:
        """Leave the message to the work that begins with its repetition."""
        self.given_up = True
        self.delivery.revocation.set(Revoked.LEASE_LOST)

    def lease_lost(self) -> None:
        """End what runs, unless a repetition has brought another lease meanwhile."""
        if self.expired():
            self.delivery.revocation.set(Revoked.LEASE_LOST)

    async def ended(self) -> None:
        """Wait until the work is over, however it ends."""
        if self.task is not None:
            await asyncio.wait((self.task,))


class InHand:
    """The messages of one stream that a worker has in hand, each with the work that answers it."""

    def __init__(self) -> None:
        """Begin with none."""
        self._works: dict[tuple[int, int], Work] = {}

    def of(self, info: DeliveryInfo) -> Work | None:
        """Return the work on a delivery's message, if there is one."""
        return self._works.get((info.sequence, info.published_ns))

    def add(self, work: Work) -> None:
        """Put a work in charge of its message."""
        self._works[work.info.sequence, work.info.published_ns] = work

    def remove(self, work: Work) -> None:
        """Forget a work that is over, unless another one is in charge already."""
        key = work.info.sequence, work.info.published_ns
        if self._works.get(key) is work:
            del self._works[key]
