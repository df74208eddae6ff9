"""What an engine learns about its request, and how it hears stop and kill.

The methods are those of Dynamo's Python binding, so an engine written for it runs unchanged;
the properties beside them are dialback's. No I/O.

Source: protocol section 11, overview section 2.
"""

import asyncio
import re
import secrets
from collections.abc import Mapping
from datetime import datetime
from enum import IntEnum
from typing import Final

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


class _State(IntEnum):
    LIVE = 0
    STOPPED = 1
    KILLED = 2


class Context:
    """One request's context."""

    def __init__(
        self,
        request_id: str,
        *,
        metadata: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        deadline: datetime | None = None,
        delivery: int = 1,
        lane: str = "normal",
    ) -> None:
        self._id = request_id
        self._state = _State.LIVE
        self._changed = asyncio.Event()
        self._metadata = dict(metadata or {})
        self._headers = dict(headers or {})
        self._deadline = deadline
        self._delivery = delivery
        self._lane = lane
        found = _TRACEPARENT.fullmatch(self._headers.get("traceparent", ""))
        self._trace_id: str | None = found[1] if found else None
        self._parent_span_id: str | None = found[2] if found else None
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

    async def async_killed_or_stopped(self) -> bool:
        """Wait until the request is stopped or killed; return True."""
        await self._changed.wait()
        return True

    def detached(self, request_id: str) -> "Context":
        """Return a context of its own under another id: same metadata, no stop and no kill."""
        return Context(
            request_id,
            metadata=self._metadata,
            headers=self._headers,
            deadline=self._deadline,
            delivery=self._delivery,
            lane=self._lane,
        )

    @property
    def metadata(self) -> dict[str, str]:
        """The control message's string map; the engine may change its copy."""
        return self._metadata

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

    def _raise_to(self, state: _State) -> None:
        self._state = max(self._state, state)
        self._changed.set()
