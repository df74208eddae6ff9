"""Where the answers to pulls arrive: the current inbox, and dropped ones that still listen.

Dropping an inbox makes the server forget all pulls of it at once. The local subscription stays
a while, because messages may be under way. In a cluster that does not help: what another server
sends while this one hears the UNSUB is thrown away, and comes again when its lease ends. There the
server's subscription stays, too, until the pulls have ended by themselves. Statuses are attributed
by their subject; data carries the subject it was published to, so it can only be counted.

Source: jetstream sections 1.3 and 1.4; ADR-13 (status codes).
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Final

import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from dialback.queue.delivery import DeliveryInfo, parse_ack_subject

_LATE_GRACE: Final = 5.0  # seconds a dropped inbox listens at least; in a cluster, pulls live less
_MOST_DROPPED: Final = 256  # that still listen; a worker of one slot drops one for each request
_LEFT: Final = "Nats-Pending-Messages"


class PullInbox:
    """Sends pulls, and hands over what comes back.

    Attributes:
        heard: Monotonic time of the last sign of life, in seconds: a message, a status or a
            heartbeat, even if it answers a pull that was given up. 0.0 before the first.
    """

    def __init__(
        self,
        client: Client,
        stream: str,
        *,
        on_message: Callable[[Msg, DeliveryInfo, float], None],
        on_status: Callable[[str, str, int | None], None],
    ) -> None:
        """Nothing is subscribed before the first pull.

        Args:
            client: Connected client.
            stream: Stream name.
            on_message: Takes a message, what its reply subject says, and a monotonic time
                before which it had not been asked for.
            on_status: Takes the reply subject of a pull, the status that answers it, and how
                many messages it could still have brought, where the server says so. Not called
                for pulls of a dropped inbox.
        """
        self._client = client
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}."
        self._on_message = on_message
        self._on_status = on_status
        self._current: Subscription | None = None
        self._serial = 0
        self._dropped: deque[tuple[float, Subscription]] = deque()
        self.heard = 0.0

    @property
    def cancels(self) -> bool:
        """Whether :meth:`drop` cancels pulls and loses nothing: the server is in no cluster."""
        info = self._client._server_info  # pyright: ignore[reportPrivateUsage]
        return "cluster" not in info

    async def open(self) -> None:
        """Subscribe, unless that was done; afterwards :meth:`new_reply` may be called."""
        if self._current is None:
            self._current = await self._client.subscribe(  # pyright: ignore[reportUnknownMemberType]
                f"{self._client.new_inbox()}.*", cb=partial(self._received, time.monotonic())
            )

    def new_reply(self) -> str:
        """Return a reply subject for one pull."""
        self._serial += 1
        return f"{self._prefix()}{self._serial}"

    async def pull(self, lane: str, reply: str, body: Mapping[str, object]) -> None:
        """Ask one lane's consumer for messages."""
        await self._client.publish(self._next + lane, orjson.dumps(body), reply=reply)

    async def drop(self) -> None:
        """Cancel all pulls under way, or let them end; take what has left the server."""
        inbox, self._current = self._current, None
        if inbox is None:
            return
        if self.cancels:
            with suppress(nats.errors.Error, OSError):
                await self._client._send_unsubscribe(inbox._id)  # pyright: ignore[reportPrivateUsage]
        now = time.monotonic()
        self._dropped.append((now + _LATE_GRACE, inbox))
        late = max(0, len(self._dropped) - _MOST_DROPPED)
        late = max(late, sum(end <= now for end, _ in self._dropped))
        for _ in range(late):
            await self._forget(self._dropped.popleft()[1])

    async def close(self) -> None:
        """Stop listening; what arrives from now on comes again when its lease ends."""
        await self.drop()
        while self._dropped:
            await self._forget(self._dropped.popleft()[1])

    async def _received(self, asked: float, message: Msg) -> None:
        self.heard = time.monotonic()
        info = parse_ack_subject(message.reply)
        if info is not None:
            self._on_message(message, info, asked)
        elif self._current is not None and message.subject.startswith(self._prefix()):
            headers = message.headers or {}
            left = headers.get(_LEFT, "")
            number = int(left) if left.isdecimal() else None
            self._on_status(message.subject, headers.get("Status", ""), number)

    def _prefix(self) -> str:
        assert self._current is not None  # noqa: S101 -- opened before any pull
        return self._current.subject.removesuffix("*")

    async def _forget(self, inbox: Subscription) -> None:
        with suppress(nats.errors.Error, OSError):
            await inbox.unsubscribe()
