"""The states of one response stream, at both of its ends.

Everything that decides what may be written next, and what a frame from the peer means,
lives in the two tables of this file; no I/O. :class:`WorkerEnd` dials and writes items,
:class:`RequesterEnd` listens and reads them. ARCHITECTURE.md shows the same tables and a
test compares them.

Source: protocol sections 6 to 8. Differences, all on purpose (section 21): a stop flushes and
still writes the final (D-11), a stop is legal right after the handshake (D-5), the end is
known at the final and what follows cannot spoil it (D-18), three end states (D-13).
"""

from enum import Enum, StrEnum
from typing import Final

import msgspec

from dialback.errors import ProtocolError
from dialback.transport.messages import (
    CallHomeHandshake,
    ControlMessage,
    ResponseStreamPrologue,
    ResumeOffer,
    StreamType,
    decode_control,
    decode_handshake,
    decode_prologue,
    encode_document,
)
from dialback.transport.resume_frames import is_answer, is_release, read_superseded
from dialback.transport.two_part import TwoPartMessage, encode

STOP_FRAME: Final = encode(encode_document(ControlMessage.STOP))
KILL_FRAME: Final = encode(encode_document(ControlMessage.KILL))
SENTINEL_FRAME: Final = encode(encode_document(ControlMessage.SENTINEL))
_ACCEPTED_FRAME: Final = encode(encode_document(ResponseStreamPrologue()))
_CONTROLS: Final = {encode_document(control): control for control in ControlMessage}


class _Key(Enum):
    """A member of the tables' keys, hashed in C: Enum's own hash is a call of Python code."""

    __hash__ = object.__hash__


# --- the worker's end ---------------------------------------------------------------------


class WorkerState(_Key):
    """Where the worker's end is."""

    DIALLED = "dialled"
    OFFERED = "offered"
    OPEN = "open"
    STREAMING = "streaming"
    STOPPING = "stopping"
    FINISHING = "finishing"
    LINGER = "linger"
    ABORTED = "aborted"


class WorkerEvent(_Key):
    """What happens at the worker's end."""

    HANDSHAKE = "write handshake"
    OFFER = "write resumable handshake"
    FRESH = "write fresh handshake"
    PROLOGUE = "write prologue"
    REFUSAL = "write error prologue"
    ITEM = "write item"
    FINAL = "write final"
    SENTINEL = "write sentinel"
    STOP = "stop received"
    KILL = "kill received"
    VIOLATION = "violation received"
    ANSWER = "answer received"
    SUPERSEDED = "superseded received"
    RELEASE = "release received"
    LOST = "connection lost"


_W, _WE = WorkerState, WorkerEvent
WORKER_TABLE: Final[dict[tuple[WorkerState, WorkerEvent], WorkerState]] = {
    (_W.DIALLED, _WE.HANDSHAKE): _W.OPEN,
    # uvloop may deliver what the peer sent at once before the handshake is written.
    (_W.DIALLED, _WE.STOP): _W.DIALLED,
    (_W.DIALLED, _WE.KILL): _W.ABORTED,
    (_W.DIALLED, _WE.VIOLATION): _W.ABORTED,
    (_W.DIALLED, _WE.LOST): _W.ABORTED,
    (_W.DIALLED, _WE.OFFER): _W.OFFERED,
    (_W.DIALLED, _WE.FRESH): _W.OPEN,
    # Later an answer tells a fresh worker that it is not the first; any other one does not take
    # it for an answer (overview section 4).
    (_W.OFFERED, _WE.ANSWER): _W.OPEN,
    (_W.OFFERED, _WE.STOP): _W.OFFERED,
    (_W.OFFERED, _WE.KILL): _W.ABORTED,
    (_W.OFFERED, _WE.VIOLATION): _W.ABORTED,
    (_W.OFFERED, _WE.SUPERSEDED): _W.ABORTED,
    (_W.OFFERED, _WE.LOST): _W.ABORTED,
    (_W.OPEN, _WE.PROLOGUE): _W.STREAMING,
    (_W.OPEN, _WE.REFUSAL): _W.FINISHING,
    (_W.OPEN, _WE.STOP): _W.OPEN,
    (_W.OPEN, _WE.KILL): _W.ABORTED,
    (_W.OPEN, _WE.VIOLATION): _W.ABORTED,
    (_W.OPEN, _WE.ANSWER): _W.ABORTED,
    (_W.OPEN, _WE.SUPERSEDED): _W.ABORTED,
    (_W.OPEN, _WE.LOST): _W.ABORTED,
    (_W.STREAMING, _WE.ITEM): _W.STREAMING,
    (_W.STREAMING, _WE.FINAL): _W.FINISHING,
    (_W.STREAMING, _WE.SENTINEL): _W.LINGER,
    (_W.STREAMING, _WE.STOP): _W.STOPPING,
    (_W.STREAMING, _WE.KILL): _W.ABORTED,
    (_W.STREAMING, _WE.VIOLATION): _W.ABORTED,
    (_W.STREAMING, _WE.ANSWER): _W.ABORTED,
    (_W.STREAMING, _WE.SUPERSEDED): _W.ABORTED,
    (_W.STREAMING, _WE.LOST): _W.ABORTED,
    (_W.STOPPING, _WE.ITEM): _W.STOPPING,
    (_W.STOPPING, _WE.FINAL): _W.FINISHING,
    (_W.STOPPING, _WE.SENTINEL): _W.LINGER,
    (_W.STOPPING, _WE.STOP): _W.STOPPING,
    (_W.STOPPING, _WE.KILL): _W.ABORTED,
    (_W.STOPPING, _WE.VIOLATION): _W.ABORTED,
    (_W.STOPPING, _WE.ANSWER): _W.ABORTED,
    (_W.STOPPING, _WE.SUPERSEDED): _W.ABORTED,
    (_W.STOPPING, _WE.LOST): _W.ABORTED,
    (_W.FINISHING, _WE.SENTINEL): _W.LINGER,
    (_W.FINISHING, _WE.STOP): _W.FINISHING,
    (_W.FINISHING, _WE.KILL): _W.ABORTED,
    (_W.FINISHING, _WE.VIOLATION): _W.ABORTED,
    (_W.FINISHING, _WE.ANSWER): _W.ABORTED,
    (_W.FINISHING, _WE.SUPERSEDED): _W.ABORTED,
    # The sentinel has left before this end knows.
    (_W.FINISHING, _WE.RELEASE): _W.LINGER,
    (_W.FINISHING, _WE.LOST): _W.ABORTED,
    # Everything is written, but the requester says that it was not received.
    (_W.LINGER, _WE.ANSWER): _W.ABORTED,
    (_W.LINGER, _WE.SUPERSEDED): _W.ABORTED,
    (_W.LINGER, _WE.RELEASE): _W.LINGER,
    # Whatever else the peer does now is its way of closing.
    (_W.LINGER, _WE.STOP): _W.LINGER,
    (_W.LINGER, _WE.KILL): _W.LINGER,
    (_W.LINGER, _WE.VIOLATION): _W.LINGER,
    (_W.LINGER, _WE.LOST): _W.LINGER,
    (_W.ABORTED, _WE.STOP): _W.ABORTED,
    (_W.ABORTED, _WE.KILL): _W.ABORTED,
    (_W.ABORTED, _WE.VIOLATION): _W.ABORTED,
    (_W.ABORTED, _WE.ANSWER): _W.ABORTED,
    (_W.ABORTED, _WE.SUPERSEDED): _W.ABORTED,
    (_W.ABORTED, _WE.LOST): _W.ABORTED,
}


_ENDING: Final = (WorkerState.FINISHING, WorkerState.LINGER)


class WorkerEnd:
    """The worker's end of one response stream: frames to write, meaning of what is read.

    Attributes:
        state: Where it is.
        answer: The requester's answer to a resumable handshake.
        fresh: Whether the handshake said that none is waited for.
        in_order: Whether final and sentinel are queued: then a release can follow.
        superseded_by: Number of the delivery that serves the stream instead, or 0.
    """

    __slots__ = ("_offered", "_reuse", "answer", "fresh", "in_order", "state", "superseded_by")

    def __init__(self) -> None:
        self.state = WorkerState.DIALLED
        self.answer: TwoPartMessage | None = None
        self.fresh = False
        self.in_order = False
        self.superseded_by = 0
        self._offered = False
        self._reuse = False

    def advance(self, event: WorkerEvent) -> None:
        """Go to the next state.

        Raises:
            ProtocolError: If the event is not possible in this state (our own mistake).
        """
        following = WORKER_TABLE.get((self.state, event))
        if following is None:
            raise ProtocolError(f"cannot {event.value} while {self.state.value}")
        self.state = following

    def handshake(self, subject: str, offer: ResumeOffer | None = None) -> bytes:
        """Return the handshake's frame; with an offer the one of a resumable stream."""
        document = CallHomeHandshake(subject=subject, stream_type=StreamType.RESPONSE)
        if offer is None:
            self.advance(WorkerEvent.HANDSHAKE)
            return encode(encode_document(document))
        self.advance(WorkerEvent.FRESH if offer.fresh else WorkerEvent.OFFER)
        self._offered, self.fresh, self._reuse = True, offer.fresh, offer.reuse
        announced = {"resume": 1, "delivery": offer.delivery, "epoch": offer.epoch}
        if offer.unable:
            announced["unable"] = 1
        if offer.fresh:
            announced["fresh"] = 1
        if offer.reuse:
            announced["reuse"] = 1
        return encode(encode_document(msgspec.structs.replace(document, **announced)))

    def prologue(self, refusal: ResponseStreamPrologue | None = None) -> bytes:
        """Return the prologue's frame: accepted, or the refusal."""
        if refusal is None:
            self.advance(WorkerEvent.PROLOGUE)
            return _ACCEPTED_FRAME
        self.advance(WorkerEvent.REFUSAL)
        return encode(encode_document(refusal))

    def receive(self, message: TwoPartMessage) -> WorkerEvent | None:
        """Return what a frame from the requester means; ``None`` for an empty frame.

        Anything that is no stop and no kill is a violation, and counts as a kill
        (protocol section 7.3), unless the worker has offered to resume.
        """
        if not message.header and not message.data:
            return None
        control = None if message.data else _CONTROLS.get(message.header)
        # A control frame is a string. To try to read one costs an exception for each release.
        if control is None and not message.data and not message.header.startswith(b"{"):
            control = _lenient_control(message.header)
        event = {ControlMessage.STOP: WorkerEvent.STOP, ControlMessage.KILL: WorkerEvent.KILL}.get(
            control or ControlMessage.SENTINEL, WorkerEvent.VIOLATION
        )
        if control is None and self._offered:
            event = self._answered(message)
        self.advance(event)
        return event

    def _answered(self, message: TwoPartMessage) -> WorkerEvent:
        if self._reuse and self.in_order and self.state in _ENDING and is_release(message):
            return WorkerEvent.RELEASE
        if (self.fresh or self.state is WorkerState.OFFERED) and is_answer(message):
            self.answer = message
            return WorkerEvent.ANSWER
        newer = read_superseded(message)
        if newer is None:
            return WorkerEvent.VIOLATION
        self.superseded_by = newer
        return WorkerEvent.SUPERSEDED


def _lenient_control(header: bytes) -> ControlMessage | None:
    """Read a control frame that is written with blanks or escapes."""
    try:
        return decode_control(header)
    except ProtocolError:
        return None


# --- the requester's end ------------------------------------------------------------------


class RequesterState(_Key):
    """Where the requester's end of one connection is."""

    ACCEPTED = "accepted"
    OPEN = "open"
    STREAMING = "streaming"
    FINAL_SEEN = "final seen"
    ENDED = "ended"


class RequesterEvent(_Key):
    """What a frame means to the requester."""

    HANDSHAKE = "handshake received"
    PROLOGUE = "prologue received"
    REFUSAL = "error prologue received"
    ITEM = "item received"
    FINAL = "final received"
    SENTINEL = "sentinel received"
    LOST = "connection lost"


_R, _RE = RequesterState, RequesterEvent
REQUESTER_TABLE: Final[dict[tuple[RequesterState, RequesterEvent], RequesterState]] = {
    (_R.ACCEPTED, _RE.HANDSHAKE): _R.OPEN,
    (_R.ACCEPTED, _RE.LOST): _R.ENDED,
    (_R.OPEN, _RE.PROLOGUE): _R.STREAMING,
    (_R.OPEN, _RE.REFUSAL): _R.ENDED,
    (_R.OPEN, _RE.LOST): _R.ENDED,
    (_R.STREAMING, _RE.ITEM): _R.STREAMING,
    (_R.STREAMING, _RE.FINAL): _R.FINAL_SEEN,
    (_R.STREAMING, _RE.SENTINEL): _R.ENDED,
    (_R.STREAMING, _RE.LOST): _R.ENDED,
    (_R.FINAL_SEEN, _RE.SENTINEL): _R.ENDED,
    (_R.FINAL_SEEN, _RE.LOST): _R.ENDED,
    (_R.ENDED, _RE.SENTINEL): _R.ENDED,
    (_R.ENDED, _RE.LOST): _R.ENDED,
}


class EndState(StrEnum):
    """How a response stream ended for its caller (protocol D-13)."""

    COMPLETE = "complete"
    CANCELLED = "cancelled"
    BROKEN = "broken"


def end_state(*, final_seen: bool, cancelled: bool) -> EndState:
    """Return how a stream ended: the final alone proves completeness."""
    if final_seen:
        return EndState.COMPLETE
    return EndState.CANCELLED if cancelled else EndState.BROKEN


class RequesterEnd:
    """The requester's end of one connection: what each frame of the worker means."""

    __slots__ = ("handshake", "prologue", "state")

    def __init__(self) -> None:
        self.state = RequesterState.ACCEPTED
        self.handshake: CallHomeHandshake | None = None
        self.prologue: ResponseStreamPrologue | None = None

    def advance(self, event: RequesterEvent) -> None:
        """Go to the next state.

        Raises:
            ProtocolError: If the peer may not send this in this state.
        """
        following = REQUESTER_TABLE.get((self.state, event))
        if following is None:
            raise ProtocolError(f"{event.value} while {self.state.value}")
        self.state = following

    def receive(self, message: TwoPartMessage) -> RequesterEvent | None:
        """Return what a frame means; ``None`` for an empty frame, which is ignored.

        A data-only frame while streaming is an :attr:`RequesterEvent.ITEM`; the caller
        decodes it and reports the final with :meth:`advance`.

        Raises:
            ProtocolError: If the frame is none that the peer may send now.
        """
        if self.state is RequesterState.STREAMING and not message.header and message.data:
            return RequesterEvent.ITEM  # the hot path
        event = self._event_of(message)
        if event is not None:
            self.advance(event)
        return event

    def _event_of(self, message: TwoPartMessage) -> RequesterEvent | None:
        match self.state:
            case RequesterState.ACCEPTED:
                if not message.header:
                    raise ProtocolError(f"expected a handshake, got a {message.kind} frame")
                self.handshake = decode_handshake(message.header)
                return RequesterEvent.HANDSHAKE
            case RequesterState.OPEN:
                if message.kind != "header-only":
                    raise ProtocolError(f"malformed prologue: a {message.kind} frame")
                self.prologue = decode_prologue(message.header)
                refused = self.prologue.error is not None
                return RequesterEvent.REFUSAL if refused else RequesterEvent.PROLOGUE
            case _:
                return _event_after_prologue(message)


def _event_after_prologue(message: TwoPartMessage) -> RequesterEvent | None:
    if not message.header:
        return RequesterEvent.ITEM if message.data else None
    if not message.data and decode_control(message.header) is ControlMessage.SENTINEL:
        return RequesterEvent.SENTINEL
    raise ProtocolError(f"unexpected {message.kind} frame on a response stream")
