"""What is noted about a message: which of its deliveries ended without a crash. No I/O.

JetStream counts deliveries, not how they ended. A worker that lives notes the end of each
delivery that does not end its message; a delivery without a note ended with its worker. So
crashes are what is left of ``num_delivered`` (overview section 3, rule 8).
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec
import orjson

from dialback.outcomes import Outcome

NOTES_BUCKET: Final = "dialback_notes"
NOTES_STREAM: Final = f"KV_{NOTES_BUCKET}"
_NS: Final = 1_000_000_000
_KEPT_DAYS: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """How the deliveries of one message ended that did not end with their worker.

    Attributes:
        handed_back: Delivery numbers that were handed back.
        retried: Delivery numbers in which the requester could not be reached.
        superseded: Delivery numbers whose lease was lost while the worker lived.
        finished: The request's outcome, if it is known and the message only has to be removed.
    """

    handed_back: frozenset[int] = frozenset()
    retried: frozenset[int] = frozenset()
    superseded: frozenset[int] = frozenset()
    finished: Outcome | None = None

    @property
    def attempts(self) -> int:
        """Deliveries in which the requester could not be reached."""
        return len(self.retried)

    def crashes_before(self, number: int) -> int:
        """Return how many of the deliveries before ``number`` ended with their worker."""
        noted = self.handed_back | self.retried | self.superseded
        return max(0, number - 1 - len({n for n in noted if n < number}))

    def merged(self, other: "Note") -> "Note":
        """Return what both say; the first outcome stays."""
        return Note(
            handed_back=self.handed_back | other.handed_back,
            retried=self.retried | other.retried,
            superseded=self.superseded | other.superseded,
            finished=self.finished or other.finished,
        )

    def encode(self) -> bytes:
        """Return the note as JSON."""
        value: dict[str, Any] = {
            "handed_back": sorted(self.handed_back),
            "retried": sorted(self.retried),
            "superseded": sorted(self.superseded),
        }
        return orjson.dumps(value | ({"finished": self.finished} if self.finished else {}))

    @classmethod
    def decode(cls, data: bytes) -> "Note":
        """Read a stored note; what cannot be read says nothing."""
        try:
            stored = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return cls()
        return cls(
            handed_back=stored.handed_back,
            retried=stored.retried,
            superseded=stored.superseded,
            finished=Outcome(stored.finished) if stored.finished in set(Outcome) else None,
        )


class _Stored(msgspec.Struct):
    handed_back: frozenset[int] = frozenset()
    retried: frozenset[int] = frozenset()
    superseded: frozenset[int] = frozenset()
    finished: str = ""


_decoder: Final = msgspec.json.Decoder(_Stored)


@dataclass(frozen=True, slots=True)
class Stored:
    """A note as it was read.

    Attributes:
        note: The note; empty if there is none.
        revision: Its sequence in the bucket; 0 if there is none.
    """

    note: Note = Note()
    revision: int = 0


def note_key(stream: str, sequence: int, published_ns: int) -> str:
    """Return the key of a message's note; the time tells a recreated stream from the old one."""
    return f"{stream}.{sequence}-{published_ns}"


def notes_stream(replicas: int) -> dict[str, Any]:
    """Return the configuration of the stream behind the bucket, as KV has it."""
    return {
        "name": NOTES_STREAM,
        "description": "dialback: which deliveries ended without a crash",
        "subjects": [f"$KV.{NOTES_BUCKET}.>"],
        "retention": "limits",
        "discard": "new",
        "storage": "file",
        "num_replicas": replicas,
        "max_msgs_per_subject": 1,
        "max_age": _KEPT_DAYS * 86_400 * _NS,
        "duplicate_window": 120 * _NS,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_direct": True,
    }


def note_subject(key: str) -> str:
    """Return the subject of a note."""
    return f"$KV.{NOTES_BUCKET}.{key}"
