"""Asks a lane with a ``no_wait`` pull: it is answered at once, with messages or a status.

Source: ADR-13 (pull requests and status codes).
"""

import asyncio
from typing import Final

from dialback.metrics.names import PullErrorKind
from dialback.queue.pull_inbox import PullInbox
from dialback.queue.pulls import GIVEN_UP, NO_MESSAGES, TIMED_OUT, Probe, PullFailedError

_PROBE_TIMEOUT: Final = 2.0  # seconds; doubled while nothing is heard at all
_MAX_DOUBLINGS: Final = 4


class Probing:
    """The probes of one pull loop, one at a time."""

    def __init__(self, inbox: PullInbox) -> None:
        """Nothing is under way.

        Args:
            inbox: Where the answers arrive; open before :meth:`ask`.
        """
        self._inbox = inbox
        self._probe: Probe | None = None
        self._unheard = 0

    async def ask(self, lane: str, wanted: int) -> Probe:
        """Ask a lane for so many messages; return when it has answered, or was given up.

        Raises:
            PullFailedError: If the answer was a strange one, or none came.
        """
        reply, before = self._inbox.new_reply(), self._inbox.heard
        probe = self._probe = Probe(lane, wanted, reply)
        # A timer, not asyncio.timeout: on time it costs a third, and no exception comes of it.
        patience = _PROBE_TIMEOUT * 2**self._unheard
        timer = asyncio.get_running_loop().call_later(patience, probe.time_out)
        try:
            await self._inbox.pull(lane, reply, {"batch": wanted, "no_wait": True})
            status = await probe.done
        finally:
            timer.cancel()
            self._probe = None
        if status == TIMED_OUT:
            # A server that is only slow is heard, at the latest when it is given more time.
            quiet = self._inbox.heard == before
            self._unheard = min(self._unheard + 1, _MAX_DOUBLINGS) if quiet else 0
            raise PullFailedError(PullErrorKind.MISSED_HEARTBEATS, status)
        if status != GIVEN_UP:
            self._unheard = 0
            if status and status not in NO_MESSAGES:
                raise PullFailedError(PullErrorKind.STATUS, status)
        return probe

    def give_up(self) -> None:
        """Wait for no answer any more."""
        if self._probe is not None:
            self._probe.give_up()

    def message(self, lane: str) -> None:
        """A message of some lane came."""
        if self._probe is not None:
            self._probe.message(lane)

    def status(self, reply: str, status: str) -> None:
        """A status came for some pull."""
        if self._probe is not None:
            self._probe.status(reply, status)
