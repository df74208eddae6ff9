"""Questions to the server, many at a time, each answered on a subject of its own below one inbox.

What nats-py's ``Client.request`` does, for acknowledgements and publishes, of which there are one
or more with every request: a counter instead of a random token, one timer for all questions, no
``wait_for``, no callback at the future. nats-py's flusher writes all questions of one turn of the
event loop at once, and nats-py subscribes the inbox again after a reconnect.
"""

import asyncio
from collections.abc import Mapping
from typing import Final, TypeAlias

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from typing_extensions import override

_NO_RESPONDERS: Final = "503"


class ConnectionLostError(nats.errors.Error):
    """The connection broke before the answer came."""

    @override
    def __str__(self) -> str:
        return "connection lost"


_Answer: TypeAlias = Msg | Exception | type[nats.errors.Error]
"""A class where it can be one, for an error keeps frames alive."""
_Question: TypeAlias = tuple[asyncio.Future[_Answer], float]
"""What its answer goes into, and the event loop's time at which it is too late."""


class Replies:
    """Asks over one connection, and hands each answer to who asked."""

    def __init__(self, client: Client) -> None:
        """Use a connected client; nothing is subscribed before the first question."""
        self._client = client
        self._prefix = ""
        self._serial = 0
        self._waiting: dict[str, _Question] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def ask(
        self,
        subject: str,
        payload: bytes,
        *,
        timeout: float,  # noqa: ASYNC109 -- one timer is all that it costs
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """Publish, and return the payload of the answer.

        Args:
            subject: Whom to ask.
            payload: The question.
            timeout: Seconds to wait for the answer.
            headers: The question's headers.

        Raises:
            nats.errors.TimeoutError: If there was none in time.
            nats.errors.NoRespondersError: If nobody listens to the subject.
            ConnectionLostError: See :meth:`connection_lost`.
            nats.errors.Error: If it could not be sent.
        """
        if not self._prefix:
            await self._listen()
        self._serial += 1
        reply = f"{self._prefix}{self._serial}"
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[_Answer] = loop.create_future()
        due = loop.time() + timeout
        self._waiting[reply] = answered, due
        self._wake_at(due, loop)
        try:
            given = None if headers is None else dict(headers)
            await self._client.publish(subject, payload, reply=reply, headers=given)
            answer = await answered
        finally:
            del self._waiting[reply]
        if isinstance(answer, Msg):
            return answer.data
        raise answer

    def connection_lost(self) -> None:
        """Fail all questions that wait: their answers went with the connection."""
        for reply in list(self._waiting):
            self._settle(reply, ConnectionLostError)

    async def _listen(self) -> None:
        # Known before it is subscribed: nats-py sends in order, so others may ask meanwhile.
        self._prefix = f"{self._client.new_inbox()}."
        try:
            await self._client.subscribe(  # pyright: ignore[reportUnknownMemberType]
                f"{self._prefix}*", cb=self._received
            )
        except nats.errors.Error:
            self._prefix = ""
            raise

    async def _received(self, message: Msg) -> None:
        if message.headers and message.headers.get("Status") == _NO_RESPONDERS:
            self._settle(message.subject, nats.errors.NoRespondersError)
        else:
            self._settle(message.subject, message)

    def _settle(self, reply: str, answer: _Answer) -> None:
        question = self._waiting.get(reply)
        if question is not None and not question[0].done():
            question[0].set_result(answer)

    def _wake_at(self, due: float, loop: asyncio.AbstractEventLoop) -> None:
        """See to it that somebody looks for late answers at ``due``."""
        if self._timer is None or due < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(due, self._look_for_late, loop)

    def _look_for_late(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, now = None, loop.time()
        for reply, (_, due) in self._waiting.items():
            if due <= now:
                self._settle(reply, nats.errors.TimeoutError)
        left = [due for answered, due in self._waiting.values() if not answered.done()]
        if left:
            self._wake_at(min(left), loop)
