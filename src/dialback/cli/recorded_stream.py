"""One recorded direction of a back-channel made readable: what each frame means.

Pure: bytes in, JSON-able records out; what is wrong with a recording is part of its record.
"""

from typing import Any, Final

from dialback.cli.inspection import cut_value
from dialback.cli.recording import Frame, control_in, document_in, frames_in, item_in
from dialback.errors import DeserializationError, ProtocolError
from dialback.transport.messages import ControlMessage, DynamoError, ItemWrapper
from dialback.transport.response_stream import RequesterEnd, RequesterEvent, end_state
from dialback.transport.resume_frames import is_answer, read_superseded
from dialback.transport.two_part import TwoPartMessage

_NAMES: Final = {
    RequesterEvent.HANDSHAKE: "handshake",
    RequesterEvent.PROLOGUE: "prologue",
    RequesterEvent.REFUSAL: "error_prologue",
    RequesterEvent.SENTINEL: "sentinel",
}
_DOCUMENTS: Final = {RequesterEvent.HANDSHAKE, RequesterEvent.PROLOGUE, RequesterEvent.REFUSAL}


def stream_record(recording: bytes, max_bytes: int) -> dict[str, Any]:
    """Return a recorded direction of a back-channel as a record.

    Field ``problems`` is empty if every frame could be read and was legal where it came.
    """
    frames: list[Frame] = []
    problems: list[str] = []
    try:
        frames.extend(frames_in(recording))  # keeps what came before an error
    except ProtocolError as error:
        problems.append(str(error))
    reader = _Reader(max_bytes)
    if frames and _order_name(frames[0].message) is not None:
        direction, meanings = "requester to worker", [_order(frame) for frame in frames]
    else:
        direction, meanings = "worker to requester", [reader.meaning(frame) for frame in frames]
    records = [
        _frame_record(number, frame) | meaning
        for number, (frame, meaning) in enumerate(zip(frames, meanings, strict=True), 1)
    ]
    problems += [f"frame {r['number']}: {r['problem']}" for r in records if r["problem"]]
    wrong = [r["number"] for r in records if r["checksum"] == "wrong"]
    problems += [f"frame {number}: wrong checksum" for number in wrong]
    return {
        "input": "stream",
        "bytes": len(recording),
        "direction": direction,
        "frames": records,
        "items": reader.items,
        "end": reader.end if direction == "worker to requester" else None,
        "problems": problems,
    }


def _frame_record(number: int, frame: Frame) -> dict[str, Any]:
    return {
        "number": number,
        "offset": frame.offset,
        "kind": frame.message.kind,
        "header_bytes": len(frame.message.header),
        "data_bytes": len(frame.message.data),
        "checksum": frame.checksum_state,
    }


def _meaning(name: str, value: Any = None, *, codec: str = "", problem: str = "") -> dict[str, Any]:
    return {"meaning": name, "codec": codec or None, "value": value, "problem": problem or None}


def _order(frame: Frame) -> dict[str, Any]:
    """Return what a frame from the requester means."""
    name = _order_name(frame.message)
    if name is not None:
        value = None if name in set(ControlMessage) else document_in(frame.message.header)
        return _meaning(name, value)
    if frame.message.kind == "empty":
        return _meaning("empty")
    return _meaning("unknown", problem="neither stop nor kill: a worker takes it as a kill")


def _order_name(message: TwoPartMessage) -> str | None:
    """Return what only a requester writes, by name; ``None`` for anything else."""
    control = control_in(message)
    if control is ControlMessage.STOP or control is ControlMessage.KILL:
        return control.value
    if read_superseded(message) is not None:
        return "superseded"
    return "answer" if is_answer(message) else None


class _Reader:
    """Reads a worker's frames in order, as a requester would."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._end = RequesterEnd()
        self._refused = False
        self._final_seen = False
        self.items = 0

    @property
    def end(self) -> str:
        """``complete``, ``refused`` or ``broken`` (no final)."""
        if self._refused:
            return "refused"
        return end_state(final_seen=self._final_seen, cancelled=False).value

    def meaning(self, frame: Frame) -> dict[str, Any]:
        """Return what the next frame means."""
        try:
            event = self._end.receive(frame.message)
            if event is RequesterEvent.ITEM:
                return self._item(frame.message.data)
        except ProtocolError as error:
            return self._illegal(frame.message, str(error))
        self._refused = self._refused or event is RequesterEvent.REFUSAL
        name = "empty" if event is None else _NAMES[event]
        return _meaning(name, document_in(frame.message.header) if event in _DOCUMENTS else None)

    def _item(self, data: bytes) -> dict[str, Any]:
        found = item_in(data)
        if found is None:
            raise DeserializationError("an item that is neither JSON nor msgpack of its kind")
        wrapper, codec = found
        if wrapper.complete_final:
            self._end.advance(RequesterEvent.FINAL)
            self._final_seen = True
            return _meaning("final", codec=codec)
        self.items += 1
        return self._item_meaning(wrapper, codec)

    def _item_meaning(self, wrapper: ItemWrapper, codec: str) -> dict[str, Any]:
        item = wrapper.data
        if item is None:
            return _meaning("item", codec=codec)
        if item.event == "error" or item.error is not None:
            return _meaning("error_item", _error(item.error, item.comment), codec=codec)
        return _meaning("item", cut_value(item.data, self._max_bytes), codec=codec)

    def _illegal(self, message: TwoPartMessage, problem: str) -> dict[str, Any]:
        """Return what a frame would mean somewhere else."""
        control = control_in(message)
        if control is not None:
            return _meaning(control.value, problem=problem)
        found = item_in(message.data) if message.kind == "data-only" else None
        if found is None:
            return _meaning("unknown", document_in(message.header), problem=problem)
        wrapper, codec = found
        name = "final" if wrapper.complete_final else "item"
        return _meaning(name, codec=codec, problem=problem)


def _error(error: DynamoError | None, comment: list[str] | None) -> dict[str, Any]:
    if error is None:
        return {"kind": None, "message": "; ".join(comment or [])}
    return {"kind": error.kind, "message": error.message}
