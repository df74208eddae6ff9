"""Pulls that stand on empty lanes: what they may still bring. No I/O, no clock.

A message that comes is delivered by a pull that the server has already, and the pull is replaced
at once. A worker with nothing in hand asks each lane for one message, because whatever stands when
it freezes takes a message with it for the length of a lease. It asks for more when more wait behind
one that came; a busy one asks the lanes that bring something for a quarter of what it has in hand
(all that goes with it in a freeze, too): one pull for each message cost a tenth of its request.
Never for more than there are slots.

Source: ADR-13 (status codes), jetstream section 1.4.
"""

from collections.abc import Mapping
from typing import Final

from dialback.queue.pulls import NO_MESSAGES

_HEARTBEAT: Final = "100"
_PART: Final = 4  # of what is in hand, this part may stand on a lane


class Standing:
    """The standing pulls of some lanes.

    Each lane's consumer has a leader of its own, so each must send its own heartbeats.

    Attributes:
        lanes: The lanes.
        expired: Whether a pull has ended: what the others may still bring is not known any more.
        failed: Lane and status of the first strange answer.
    """

    def __init__(self, replies: Mapping[str, str], now: float) -> None:
        """Nothing was asked for yet.

        Args:
            replies: Lane to reply subject; all pulls of a lane have the same.
            now: Monotonic time in seconds.
        """
        self.lanes = frozenset(replies)
        self.expired = False
        self.failed: tuple[str, str] | None = None
        self._lane_of = {reply: lane for lane, reply in replies.items()}
        self._in_hand = 0
        self._credit = dict.fromkeys(self.lanes, 0)
        self._behind = dict.fromkeys(self.lanes, 0)
        self._busy: set[str] = set()
        self._heard = dict.fromkeys(self.lanes, now)

    @property
    def empty(self) -> list[str]:
        """Lanes that have nothing: else their pull would have brought it."""
        return [lane for lane, credit in self._credit.items() if credit and not self._behind[lane]]

    @property
    def under_way(self) -> bool:
        """Whether messages must be expected that the server has sent, or will at once."""
        return any(credit and self._behind[lane] for lane, credit in self._credit.items())

    def at_ease(self, room: int) -> bool:
        """Whether every lane's pull can bring another message, and there are slots for them all.

        Args:
            room: How many more messages of any lane there are slots for.
        """
        asked = self._credit.values()
        enough = all(credit > self._share(lane) // 2 for lane, credit in self._credit.items())
        return enough and sum(asked) <= room

    def top_up(
        self, rooms: Mapping[str, int], most: int, in_hand: int = 0
    ) -> dict[str, int] | None:
        """Return how many more messages to ask each lane for; they count as asked for.

        ``None`` if a lane has more than there are slots left beside the other lanes' pulls:
        then nothing is to be asked for, and those must be cancelled first.

        Args:
            rooms: How many more messages of each lane there are slots for; at least one.
            most: Most messages in one pull.
            in_hand: Messages that are being worked on.
        """
        self._in_hand = in_hand
        asked, more = sum(self._credit.values()), dict[str, int]()
        for lane, room in rooms.items():
            wanted = self._wanted(lane, room, asked)
            if wanted is None:
                return None
            if wanted > 0:
                more[lane] = min(wanted, most)
                asked += more[lane]
        for lane, wanted in more.items():
            self._credit[lane] += wanted
        return more

    def _wanted(self, lane: str, room: int, asked: int) -> int | None:
        credit, behind, share = self._credit[lane], self._behind[lane], self._share(lane)
        if credit > share // 2:
            return 0
        wanted = min(share - credit, room - asked)
        if wanted > 0 or credit > 0:
            return wanted
        crowded = behind > 0 or asked >= len(self.lanes)
        return None if crowded else 1

    def _share(self, lane: str) -> int:
        """How many messages a lane may be asked for."""
        busy = self._in_hand // _PART if lane in self._busy else 1
        return max(1, busy, self._behind[lane])

    def message(self, lane: str, behind: int, now: float) -> None:
        """A message came, and so many wait behind it."""
        if lane in self.lanes:
            self._credit[lane] = max(0, self._credit[lane] - 1)
            self._behind[lane] = behind
            self._busy.add(lane)
            self._heard[lane] = now

    def status(self, reply: str, status: str, now: float) -> bool:
        """A status came for some pull; return whether it is a heartbeat of one of these."""
        lane = self._lane_of.get(reply)
        if lane is None:
            return False
        self._heard[lane] = now
        if status in NO_MESSAGES:
            self.expired = True
        elif status != _HEARTBEAT:
            self.failed = self.failed or (lane, status)
        return status == _HEARTBEAT

    def silence(self, now: float) -> float:
        """Return for how many seconds the quietest lane has not been heard.

        There may be no lane at all: the last free slot may have been taken just before.
        """
        return now - min(self._heard.values(), default=now)
