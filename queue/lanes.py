"""Which lane is asked first, and for how many messages. No I/O, no clock.

Strict priority, with two exceptions: every eighth pass goes in reverse order, so that a flood
of urgent requests starves nobody; and slots can be reserved for a lane, so that an urgent
request finds one free among long ones.

Source: jetstream section 2.5.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from dialback.errors import ConfigError

REVERSED_EVERY: Final = 8
EMPTY_FOR: Final = 0.005
"""Seconds an empty lane is not asked again: so much longer an urgent request waits at most."""


def lane_order(lanes: Sequence[str], number: int) -> Sequence[str]:
    """Return the lanes in the order of one probe pass.

    Args:
        lanes: All lanes, most urgent first.
        number: Number of the pass, from 1.
    """
    return lanes[::-1] if number % REVERSED_EVERY == 0 else lanes


class EmptyLanes:
    """Which lanes had nothing when they were last heard of, and whether that was just now."""

    def __init__(self) -> None:
        """Nothing is known of any lane."""
        self._since: dict[str, float] = {}

    def found(self, lane: str, now: float, *, empty: bool) -> None:
        """A lane was heard of, at a monotonic time in seconds."""
        if empty:
            self._since[lane] = now
        else:
            self._since.pop(lane, None)

    def just_now(self, lane: str, now: float) -> bool:
        """Whether it is not worth asking again yet."""
        return now - self._since.get(lane, -math.inf) < EMPTY_FOR


def room_for(
    lane: str, *, slots: int, in_use: Mapping[str, int], reserved: Mapping[str, int]
) -> int:
    """Return how many more messages of a lane fit into the slots.

    A lane uses its reserved slots first, then the common ones; nobody uses another lane's.

    Args:
        lane: The lane that asks.
        slots: All slots, reserved ones included.
        in_use: Slots that each lane uses; a lane that is left out uses none.
        reserved: Slots that are reserved for each lane; fewer than ``slots`` in all.
    """
    common = slots - sum(reserved.values())
    common -= sum(max(0, used - reserved.get(other, 0)) for other, used in in_use.items())
    own = reserved.get(lane, 0) - in_use.get(lane, 0)
    return max(0, own) + max(0, common)


class LaneSlots:
    """The slots of one worker, and which lanes use them."""

    def __init__(self, slots: int, reserved: Mapping[str, int] | None = None) -> None:
        """All slots are free.

        Args:
            slots: All of them.
            reserved: How many of them only one lane may use, by lane.
        """
        self._slots = slots
        self._reserved = reserved or {}
        self._in_use: Counter[str] = Counter()
        self._taken = 0

    def room(self, lane: str) -> int:
        """Return how many more messages of a lane fit."""
        if not self._reserved:  # the same for all, and asked seven times for each message
            return max(0, self._slots - self._taken)
        return room_for(lane, slots=self._slots, in_use=self._in_use, reserved=self._reserved)

    def take(self, lane: str) -> None:
        """A message of a lane got a slot."""
        self._in_use[lane] += 1
        self._taken += 1

    def release(self, lane: str) -> None:
        """Its slot is free again."""
        self._in_use[lane] -= 1
        self._taken -= 1


def parse_reserved(text: str) -> dict[str, int]:
    """Read ``high=2,normal=1``: reserved slots by lane; an empty text reserves none.

    Raises:
        ConfigError: If it is written in another way.
    """
    reserved: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        lane, _, count = (piece.strip() for piece in part.partition("="))
        if not (count.isascii() and count.isdecimal()) or lane in reserved:
            raise ConfigError(
                f"reserved_slots: {text!r} is not readable; write lane=slots, each lane once,"
                " such as high=2,normal=1"
            )
        reserved[lane] = int(count)
    return reserved


def check_reserved(reserved: Mapping[str, int], *, slots: int, lanes: Iterable[str]) -> None:
    """Refuse reservations that cannot be kept, or that leave a lane without any slot.

    Raises:
        ConfigError: For an unknown lane, a negative number, or too many slots in all.
    """
    known = list(lanes)
    for lane, count in reserved.items():
        if lane not in known:
            raise ConfigError(
                f"reserved_slots: there is no lane {lane!r}; the lanes are {', '.join(known)}"
            )
        if count < 0:
            raise ConfigError(f"reserved_slots: {lane}={count} is less than 0")
    if reserved and (total := sum(reserved.values())) >= slots:
        raise ConfigError(
            f"reserved_slots: {total} of {slots} slots would be reserved; at least one must be"
            " left for every lane"
        )
