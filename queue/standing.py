"""Pulls that stand on empty lanes: what they may still bring. No I/O, no clock.

A message that comes is delivered by a pull that the server has already, and the pull is replaced
at once. A worker with nothing in hand asks each lane for one message, because whatever stands when
it freezes takes a message with it for the length of a lease. It asks for more when more wait behind
one that came; a busy one asks the lanes that bring something for a quarter of what it has in hand
(all that goes with it in a freeze, too): one pull for each message cost a tenth of its request.

All lanes together are asked for no more than there are slots, but each for one at least.

Source: ADR-13 (status codes), jetstream section 1.4.
"""

from collections.abc import Mapping
from typing import Final

from dialback.queue.pulls import NO_MESSAGES

_HEARTBEAT: Final = "100"
_PART: Final = 4  # of what is in hand, this part may stand on a lane


class Standing:
    """The standing pulls of some lanes, and how many messages each may still bring: its credit.

    Each lane's consumer has a leader of its own, so each must be heard for itself.

    Attributes:
        failed: Lane and status of the first strange answer.
        lost: Whether a pull ended without saying what it had left: the credit is not known.
    """

    def __init__(self, replies: Mapping[str, str]) -> None:
        """Nothing was asked for yet.

        Args:
            replies: Lane to reply subject; all pulls of a lane have the same.
        """
        self.failed: tuple[str, str] | None = None
        self.lost = False
        self._reply_of = dict(replies)
        self._lane_of = {reply: lane for lane, reply in replies.items()}
        self._in_hand = 0
        self._credit = dict.fromkeys(replies, 0)
        self._behind = dict.fromkeys(replies, 0)
        self._busy: set[str] = set()
        self._heard = dict.fromkeys(replies, 0.0)

    def reply(self, lane: str) -> str:
        """Return the reply subject of a lane's pulls."""
        return self._reply_of[lane]

    @property
    def empty(self) -> list[str]:
        """Lanes that have nothing: else their pull would have brought it."""
        return [lane for lane, credit in self._credit.items() if credit and not self._behind[lane]]

    @property
    def stands(self) -> bool:
        """Whether a pull stands on any lane."""
        return any(self._credit.values())

    @property
    def under_way(self) -> bool:
        """Whether messages must be expected that the server has sent, or will at once."""
        return any(credit and self._behind[lane] for lane, credit in self._credit.items())

    def in_the_way(self, rooms: Mapping[str, int]) -> bool:
        """Whether a pull stands on a lane for which there is no slot."""
        if min(rooms.values()) > 0:
            return False  # as a rule
        return any(credit and rooms[lane] <= 0 for lane, credit in self._credit.items())

    @property
    def asked(self) -> int:
        """How many messages the pulls can still bring."""
        return sum(self._credit.values())

    @property
    def stocked(self) -> bool:
        """Whether every lane's pull can bring another message."""
        if not all(self._credit.values()):
            return False  # known at once, and so after each message of a worker that was idle
        for lane, credit in self._credit.items():  # noqa: SIM110 -- all() adds a call for each lane
            if credit <= self._share(lane) // 2:
                return False
        return True

    def top_up(
        self, rooms: Mapping[str, int], most: int, now: float, *, in_hand: int = 0
    ) -> dict[str, int] | None:
        """Return how many more messages to ask each lane for; they count as asked for.

        ``None`` if messages wait on a lane, and the other lanes' pulls hold all the slots: then
        nothing is to be asked for here, and the lanes are to be asked in order.

        Args:
            rooms: How many more messages of each lane there are slots for.
            most: Most messages in one pull.
            now: Monotonic time in seconds.
            in_hand: Messages that are being worked on.
        """
        self._in_hand = in_hand
        asked, more = self.asked, dict[str, int]()
        for lane, room in rooms.items():
            wanted = self._wanted(lane, room, asked)
            if wanted is None:
                return None
            if wanted > 0:
                more[lane] = min(wanted, most)
                asked += more[lane]
        for lane, wanted in more.items():
            if not self._credit[lane]:
                self._heard[lane] = now  # what does not stand is not heard of
            self._credit[lane] += wanted
        return more

    def _wanted(self, lane: str, room: int, asked: int) -> int | None:
        credit, share = self._credit[lane], self._share(lane)
        if room <= 0 or credit > share // 2:
            return 0
        wanted = min(share - credit, room - asked)
        if wanted > 0 or credit > 0:
            return wanted
        return None if self._behind[lane] > 0 else 1

    def _share(self, lane: str) -> int:
        """How many messages a lane may be asked for."""
        busy = self._in_hand // _PART if lane in self._busy else 1
        return max(1, busy, self._behind[lane])

    def message(self, lane: str, behind: int, now: float) -> None:
        """A message came, and so many wait behind it."""
        if lane in self._credit:
            self._credit[lane] = max(0, self._credit[lane] - 1)
            self._behind[lane] = behind
            self._busy.add(lane)
            self._heard[lane] = now

    def found_empty(self, lane: str) -> None:
        """A probe found nothing."""
        self._behind[lane] = 0

    def status(self, reply: str, status: str, left: int | None, now: float) -> bool:
        """Return whether a status is for one of these pulls.

        Args:
            reply: Whom it answers.
            status: The status.
            left: How many messages the pull it ended could still have brought, if it says so.
            now: Monotonic time in seconds.
        """
        lane = self._lane_of.get(reply)
        if lane is None:
            return False
        self._heard[lane] = now
        if status in NO_MESSAGES:
            self._ended(lane, left)
        elif status != _HEARTBEAT:
            self.failed = self.failed or (lane, status)
        return True

    def _ended(self, lane: str, left: int | None) -> None:
        if left is None:
            self.lost = True
            return
        self._credit[lane] = max(0, self._credit[lane] - left)
        self._behind[lane] = 0
        self._busy.discard(lane)  # it brought less than it was asked for

    def silence(self, now: float) -> float:
        """Return for how many seconds the quietest lane that a pull stands on was not heard."""
        earliest = now
        for lane, credit in self._credit.items():
            if credit and self._heard[lane] < earliest:
                earliest = self._heard[lane]
        return now - earliest
