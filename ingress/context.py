"""What an engine learns about its request, and how it hears stop and kill.

The methods are those of Dynamo's Python binding, so an engine written for it runs unchanged;
the properties beside them are dialback's. No I/O.

Source: protocol section 11, overview section 2.
"""

import asyncio
import re
import secrets
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import IntEnum
from typing import Any, Final, Protocol

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class _State(IntEnum):
    LIVE = 0
    STOPPED = 1
    KILLED = 2


class Cancellable(Protocol):
    """What a context passes its stop and kill on to: another context, a stream it asked for."""

    def stop_generating(self) -> None:
        """Finish early."""

    def kill(self) -> None:
        """End at once."""


class Context:
    """One request's context.

    The constructor's first two parameters are those of Dynamo's binding.
    """

    def __init__(
        self,
        id: str | None = None,  # noqa: A002 -- Dynamo's name
        metadata: Mapping[str, str] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        deadline: datetime | None = None,
        delivery: int = 1,
        lane: str = "normal",
        resume_from: int = 0,
        delivered: Sequence[Any] | None = None,
    ) -> None:
        """Make a live context; ``id`` is a new UUID by default."""
        self._id = id or str(uuid.uuid4())
        self._state = _State.LIVE
        self._children: list[Cancellable] = []
        self._waiting: set[asyncio.Future[bool]] = set()
        self._metadata = dict(metadata or {})
        self._headers = dict(headers or {})
        self._deadline = deadline
        self._delivery = delivery
        self._lane = lane
        self._resume_from = resume_from
        self._delivered = delivered
        found = _TRACEPARENT.fullmatch(self._headers.get("traceparent", ""))
        self._trace_id: str | None = found[1] if found else None
        self._parent_span_id: str | None = found[2] if found else None
        self._trace_flags: str | None = found[3] if found else None
        self._span_id = secrets.token_hex(8) if found else None

    # --- as in Dynamo's binding -------------------------------------------------------

    def id(self) -> str:
        """Return the request id."""
        return self._id

    def is_stopped(self) -> bool:
        """Return whether the caller asked to stop; true after a kill too."""
        return self._state is not _State.LIVE

    def is_killed(self) -> bool:
        """Return whether the caller wants nothing more."""
        return self._state is _State.KILLED

    def stop_generating(self) -> None:
        """Ask the engine to finish early. A kill is never weakened to a stop."""
        self._raise_to(_State.STOPPED)

    def kill(self) -> None:
        """Say that nothing more is wanted."""
        self._raise_to(_State.KILLED)

    def async_killed_or_stopped(self) -> "asyncio.Future[bool]":
        """Return a future that is True once the request is stopped or killed.

        Each call gives a future of its own: cancelling one is nobody else's business.
        """
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self.is_stopped():
            future.set_result(True)
        else:
            self._waiting.add(future)
            future.add_done_callback(self._waiting.discard)
        return future

    def detached(self, id: str) -> "Context":  # noqa: A002 -- Dynamo's name
        """Return a context of its own under another id: same metadata, no stop and no kill."""
        return Context(
            id,
            self._metadata,
            headers=self._headers,
            deadline=self._deadline,
            delivery=self._delivery,
            lane=self._lane,
        )

    def notify_first_token(self) -> None:
        """Do nothing: dialback defers no abort to the first token, as Dynamo's engines may."""

    def trace_headers(self) -> dict[str, str] | None:
        """Return W3C trace headers for what the engine calls; ``None`` if it is not traced."""
        if self._trace_id is None:
            return None
        traced = {"traceparent": f"00-{self._trace_id}-{self._span_id}-{self._trace_flags}"}
        passed_on = ("tracestate", "x-request-id", "request-id")
        return traced | {name: self._headers[name] for name in passed_on if name in self._headers}

    @property
    def metadata(self) -> dict[str, str]:
        """The control message's string map; the engine may change or replace its copy."""
        return self._metadata

    @metadata.setter
    def metadata(self, metadata: Mapping[str, str]) -> None:
        self._metadata = dict(metadata)

    @property
    def trace_id(self) -> str | None:
        """W3C trace id of the ``traceparent`` header, if there is one."""
        return self._trace_id

    @property
    def span_id(self) -> str | None:
        """Span id of this request at this worker, if it is traced."""
        return self._span_id

    @property
    def parent_span_id(self) -> str | None:
        """Span id of the sender, if it is traced."""
        return self._parent_span_id

    # --- children ---------------------------------------------------------------------

    def link_child(self, child: "Cancellable") -> None:
        """Pass a stop or kill of this context on to ``child``, a past one at once.

        Children hear it first, in the order they were linked. Linking twice changes nothing.
        """
        if child not in self._children:
            self._children.append(child)
        _pass_on(self._state, child)

    def unlink_child(self, child: "Cancellable") -> None:
        """The child has ended: it need not hear any more."""
        if child in self._children:
            self._children.remove(child)

    # --- dialback's own ---------------------------------------------------------------

    @property
    def headers(self) -> Mapping[str, str]:
        """The message's NATS headers."""
        return self._headers

    @property
    def deadline(self) -> datetime | None:
        """When the caller gives up on the whole stream (UTC), if it said so."""
        return self._deadline

    @property
    def delivery(self) -> int:
        """1 on the first delivery of this request."""
        return self._delivery

    @property
    def lane(self) -> str:
        """The lane it was queued in: ``high``, ``normal`` or ``low``."""
        return self._lane

    @property
    def resume_from(self) -> int:
        """Items that the caller has from earlier workers; 0 at a start.

        An engine that declares ``resume="continue"`` yields the item of this index next.
        """
        return self._resume_from

    @property
    def delivered(self) -> Sequence[Any] | None:
        """Those items, if the caller kept them (``keep_history``); else ``None``."""
        return self._delivered

    def _raise_to(self, state: _State) -> None:
        if state <= self._state:
            return
        for child in tuple(self._children):
            _pass_on(state, child)
        self._state = state
        for future in tuple(self._waiting):
            if not future.done():
                future.set_result(True)


def _pass_on(state: _State, child: Cancellable) -> None:
    if state is _State.STOPPED:
        child.stop_generating()
    elif state is _State.KILLED:
        child.kill()
