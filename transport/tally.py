"""What has arrived of a response stream, as its next worker is told. No I/O.

Only a number and a checksum are kept, unless the caller asked for the items themselves.
Source: overview section 4.
"""

import time
from collections.abc import Sequence
from typing import Final

from xxhash import xxh3_64

from dialback.transport.messages import PayloadCodec, ResumeAnswer
from dialback.transport.resume_frames import answer_frame

_MS: Final = 1000


class Tally:
    """Counts the items of one stream, and the workers in a row that brought none.

    Attributes:
        items: Items received, error items included.
        fruitless: Workers in a row that were lost without a new item.
    """

    __slots__ = ("_brought", "_digest", "_history", "_history_room", "_last", "fruitless", "items")

    def __init__(self, *, resumable: bool = False, history_bytes: int = 0) -> None:
        """Begin.

        Args:
            resumable: Whether :meth:`answer` will be asked for.
            history_bytes: Keep the items up to so many bytes of their frames; when they are
                more, none are kept.
        """
        self.items = 0
        self.fruitless = 0
        self._brought = 0
        self._digest = xxh3_64() if resumable else None
        self._history: list[bytes] | None = [] if history_bytes else None
        self._history_room = history_bytes
        self._last = time.monotonic()

    def add(self, bodies: Sequence[bytes]) -> int:
        """Count items, given the bodies of their data-only frames; return the bytes of those."""
        self.items += len(bodies)
        self._brought += len(bodies)
        joined = b"".join(bodies)  # one update of the checksum, not one for each item
        if self._digest is not None:
            self.fruitless = 0
            self._digest.update(joined)
            self._last = time.monotonic()
        if self._history is not None:
            self._keep(self._history, bodies, len(joined))
        return len(joined)

    def _keep(self, history: list[bytes], bodies: Sequence[bytes], size: int) -> None:
        self._history_room -= size
        if self._history_room < 0:
            self._history = None
        else:
            history.extend(bodies)

    def forget_history(self) -> None:
        """Keep no items any longer: the stream has ended, and there is no next worker."""
        self._history = None

    def worker_ended(self, *, blameless: bool) -> None:
        """A worker's connection ended before the final.

        Args:
            blameless: Whether it does not count as fruitless, whatever it has brought.
        """
        if not self._brought and not blameless:
            self.fruitless += 1
        self._brought = 0

    def answer(self, codec: PayloadCodec, *, history: bool = True) -> bytes:
        """Return the frame that answers a resumable handshake now.

        Args:
            codec: Codec of the stream.
            history: Whether with the items, if they are kept.
        """
        digest = self._digest.hexdigest() if self._digest is not None and self.items else ""
        answer = ResumeAnswer(
            resume=self.items,
            fruitless=self.fruitless,
            digest=digest,
            waited_ms=int((time.monotonic() - self._last) * _MS),
        )
        return answer_frame(answer, self._history if history else None, codec)
