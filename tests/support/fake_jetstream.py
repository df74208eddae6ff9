"""A stand-in for nats-py's client: lanes with messages, pulls recorded, requests scripted."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

NEXT = "$JS.API.CONSUMER.MSG.NEXT."
PUBLISHED_NS = 1_700_000_000_000_000_000


def message(
    subject: str = "", data: bytes = b"", *, reply: str = "", headers: dict[str, str] | None = None
) -> Msg:
    """A message as nats-py hands it over."""
    return Msg(
        _client=cast("Client", None), subject=subject, data=data, reply=reply, headers=headers
    )


def ack_subject(lane: str, sequence: int, *, number: int = 1, stream: str = "JOBS") -> str:
    """A v1 reply subject."""
    return f"$JS.ACK.{stream}.{lane}.{number}.{sequence}.{sequence}.{PUBLISHED_NS}.0"


@dataclass(frozen=True)
class Pull:
    """One pull request."""

    lane: str
    batch: int
    no_wait: bool
    reply: str
    expires: float = 0.0  # seconds


@dataclass
class _Inbox:
    """One subscription."""

    _id: int
    subject: str
    callback: Callable[[Msg], Awaitable[None]]
    listens: bool = True

    async def unsubscribe(self) -> None:
        self.listens = False


@dataclass
class FakeJetStream:
    """Serves pulls from ``waiting``, and requests from ``answers``.

    ``status`` is what every pull is answered with instead of messages; "" is silence.
    ``lane_status`` is the same for a lane.
    """

    waiting: dict[str, list[Msg]] = field(default_factory=dict[str, list[Msg]])
    answers: list[bytes | Exception] = field(default_factory=list[bytes | Exception])
    status: str | None = None
    lane_status: dict[str, str] = field(default_factory=dict[str, str])
    clustered: bool = False
    is_connected: bool = True
    is_closed: bool = False
    max_payload: int = 1024 * 1024
    pulls: list[Pull] = field(default_factory=list[Pull])
    published: list[tuple[str, bytes]] = field(default_factory=list[tuple[str, bytes]])
    requests: list[tuple[str, bytes, dict[str, str] | None]] = field(
        default_factory=list[tuple[str, bytes, dict[str, str] | None]]
    )
    flush_timeout: int = 0
    on_pull: Callable[[Pull], None] = lambda _: None
    _inboxes: dict[int, _Inbox] = field(default_factory=dict[int, _Inbox])
    _tasks: set[asyncio.Future[None]] = field(default_factory=set[asyncio.Future[None]])
    _lingering: list[Pull] = field(default_factory=list[Pull])

    @property
    def client(self) -> Client:
        """Itself, as what it stands in for."""
        return cast("Client", self)

    @property
    def listening(self) -> list[int]:
        """Which of the subscriptions, by number, still take messages."""
        return [number for number, inbox in self._inboxes.items() if inbox.listens]

    def put(
        self,
        lane: str,
        sequence: int,
        *,
        number: int = 1,
        data: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Store a message; a lingering pull of its lane gets it."""
        reply = ack_subject(lane, sequence, number=number)
        subject = f"dialback.a.b.c.jobs.{lane}.r{sequence}"
        stored = message(subject, data, reply=reply, headers=headers or {})
        for pull in self._lingering:
            if pull.lane == lane:
                self._lingering.remove(pull)
                self.deliver(pull.reply, stored)
                return
        self.waiting.setdefault(lane, []).append(stored)

    def deliver(self, inbox: str, delivered: Msg) -> None:
        """Hand a message to the subscription that listens to an inbox."""
        for subscription in self._inboxes.values():
            if inbox.startswith(subscription.subject.removesuffix("*")):
                task = asyncio.ensure_future(subscription.callback(delivered))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    @property
    def _server_info(self) -> dict[str, str]:
        return {"cluster": "C1"} if self.clustered else {}

    def expire(self, pull: Pull) -> None:
        """End a lingering pull as its time is over."""
        left = self._lingering.count(pull)
        self._lingering = [other for other in self._lingering if other != pull]
        self.say(pull, "408", left=left)

    def say(self, pull: Pull, status: str, *, left: int | None = None) -> None:
        """Answer a pull with a status, and what it could still have brought."""
        headers = {"Status": status}
        if left is not None:
            headers["Nats-Pending-Messages"] = str(left)
        self.deliver(pull.reply, message(pull.reply, headers=headers))

    async def subscribe(self, subject: str, *, cb: Callable[[Msg], Awaitable[None]]) -> _Inbox:
        inbox = _Inbox(len(self._inboxes) + 1, subject, cb)
        self._inboxes[inbox._id] = inbox  # pyright: ignore[reportPrivateUsage]
        return inbox

    async def _send_unsubscribe(self, sid: int) -> None:
        prefix = self._inboxes[sid].subject.removesuffix("*")
        self._lingering = [p for p in self._lingering if not p.reply.startswith(prefix)]

    def new_inbox(self) -> str:
        return f"_INBOX.fake.{len(self._inboxes)}"

    async def flush(self, timeout: int = 10) -> None:  # noqa: ASYNC109 -- nats-py's name
        self.flush_timeout = timeout
        await asyncio.sleep(0)

    async def publish(
        self,
        subject: str,
        payload: bytes = b"",
        reply: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        if not subject.startswith(NEXT):
            if reply:
                await self.asked(subject, payload, reply, headers)
            else:
                self.published.append((subject, payload))
            return
        body: Mapping[str, Any] = orjson.loads(payload)
        lane = subject.rpartition(".")[2]
        expires = body.get("expires", 0) / 1e9
        pull = Pull(lane, body["batch"], bool(body.get("no_wait")), reply, expires)
        self.pulls.append(pull)
        self.on_pull(pull)
        self._answer(pull)

    async def asked(
        self, subject: str, payload: bytes, reply: str, headers: dict[str, str] | None
    ) -> None:
        """Answer a question that was published; an error other than 503 is raised at once."""
        try:
            answer = await self.request(subject, payload, headers=headers)
        except nats.errors.NoRespondersError:
            self.deliver(reply, message(reply, headers={"Status": "503"}))
        else:
            self.deliver(reply, message(reply, answer.data))

    def _answer(self, pull: Pull) -> None:
        status = self.lane_status.get(pull.lane, self.status)
        if status is not None:
            if status:
                self.say(pull, status)
            return
        queue = self.waiting.get(pull.lane, [])
        served, queue[: pull.batch] = queue[: pull.batch], []
        behind = len(served) + len(queue)
        for stored in served:
            behind -= 1
            stored.reply = f"{stored.reply.rpartition('.')[0]}.{behind}"
            self.deliver(pull.reply, stored)
        if len(served) < pull.batch:
            if pull.no_wait:
                self.say(pull, "404")
            else:
                self._lingering += [pull] * (pull.batch - len(served))

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,  # noqa: ASYNC109 -- nats-py's name
        headers: dict[str, str] | None = None,
    ) -> Msg:
        del timeout
        self.requests.append((subject, payload, headers))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return message(data=answer)
