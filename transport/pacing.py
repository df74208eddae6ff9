"""When what a stream writes leaves: at the end of the loop's turn, at once, or joined with more.

A pure class: it is told the time, in seconds of a monotonic clock, and acts on nothing.

A stream that has just written in several turns in a row is *hot*: it is faster than anybody reads
along, and a system call costs as much as a dozen of its items. So its writes are joined for 2 ms,
and for the time of six of them in a busy loop where that is longer: a loop with so much to do is
slowed down most by its system calls. Six writes are six of its turns there, as they can't follow
each other faster. In an idle loop they say nothing about it; that a loop is idle is seen by how
soon the turn of the first write ends.

A stream that wrote once, and nothing soon before or after, will most likely do so again: its next
write need not wait for the end of the turn, in which hundreds of other streams may have their say.
"""

from typing import Final

_MAX_SECONDS: Final = 0.002  # before the writer should breathe; what is hot waits as long
_SOON: Final = 1.5  # times the pace; a write that soon after a flush goes on with the streak
_HOT_STREAK: Final = 3  # flushes
_HOT_WRITES: Final = 6  # that a hot stream of a busy loop is given for one flush
_MAX_DELAY: Final = 0.05  # seconds; the time for these writes is no longer
_REST: Final = 4  # a turn is taken to be no longer than so many times its rest after a write


class Pacing:
    """The pace of one stream.

    At a first write call :meth:`begin`, which may want it sent at once; when the loop has turned,
    :meth:`turned`; at the flush, which may come before that, :meth:`end`; and so on from the next
    write.

    Attributes:
        breathe_at: Time by which a loop that turns has flushed what was written.
    """

    def __init__(self) -> None:
        self.breathe_at = 0.0
        self._began = 0.0  # time of the first write
        self._left = 0.0  # time of the last flush
        self._pace = 0.0  # seconds for each write before the last flush
        self._turn = 0  # the last one in which a write would still be of the streak
        self._streak = 0  # flushes in a row, each soon followed by a write
        self._alone = False  # whether the last flush was of one write, and no part of a streak

    def begin(self, now: float, turn: int) -> bool:
        """Note the first write; return whether it should not wait for a second one.

        Args:
            now: The time.
            turn: How many turns of the loop are over.
        """
        quiet = now - self._left
        soon = turn <= self._turn and (quiet < _MAX_SECONDS or quiet < _SOON * self._pace)
        self._streak = self._streak + 1 if soon else 0
        self._began = now
        self.breathe_at = now + _MAX_SECONDS  # for a writer that keeps the loop from turning
        return self._alone and not soon

    def turned(self, now: float) -> float:
        """Return how many seconds to wait for more writes; not above 0.0: flush now."""
        rest = now - self._began
        if self._streak <= _HOT_STREAK:
            return 0.0
        pace = min(self._pace, _REST * rest)
        delay = min(max(_MAX_SECONDS, _HOT_WRITES * pace), _MAX_DELAY)
        self.breathe_at += delay + self._pace
        return delay - rest

    def end(self, now: float, writes: int, turn: int) -> None:
        """Note the flush of ``writes`` writes, at least one."""
        self._pace = (now - self._began) / writes
        self._left = now
        self._alone = writes == 1 and self._streak == 0
        # A timer that flushes what was joined, or a writer that breathes, does so before the turn
        # that it comes in is counted.
        self._turn = turn + (writes > 1)
