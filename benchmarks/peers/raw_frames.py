"""Frames of the raw loop-backs: a head of 24 bytes as dialback's, and a body of the same size.

A prepared body is no JSON: its first eight bytes say when it was made, the rest is padding. The
body of a JSON frame is dialback's, written and read with as few steps as Python has for it.
"""

import json
import struct
from typing import Any

import orjson

HEAD = struct.Struct(">QQQ")
STAMPED = struct.Struct(">QQQQ")  # a head, and the nanoseconds at the start of the body
_OPENING = b'{"data":{"data":'
_CLOSING = b'},"complete_final":false}'
_WRAPPER = len(_OPENING) + len(_CLOSING)
_FIRST, _LAST = HEAD.size + len(_OPENING), len(_CLOSING)
_NUMBER = 100  # as most items of a stream of 500
_HEADS = [HEAD.pack(0, size, 0) + _OPENING for size in range(2048)]  # as dialback has them
_MOMENT = 10**14  # nanoseconds; a host that is up for a day


def body_size(request: dict[str, Any]) -> int:
    """Return the bytes of the body in which dialback writes an item of this request."""
    item = {"i": _NUMBER, "t": _MOMENT}
    if request["size"]:
        item["text"] = "x" * request["size"]
    return _WRAPPER + len(json.dumps(item, separators=(",", ":")))


def frame(size: int, made: int = 0) -> bytes:
    """Return a whole frame with a body of ``size`` bytes, made at ``made`` nanoseconds."""
    return STAMPED.pack(0, size, 0, made) + padding(size)


def padding(size: int) -> bytes:
    """Return what follows the moment in a body of ``size`` bytes."""
    return b"x" * (size - STAMPED.size + HEAD.size)


def json_frame(item: object) -> bytes:
    """Return the frame of an item."""
    encoded = orjson.dumps(item)
    size = len(encoded) + _WRAPPER
    head = _HEADS[size] if size < len(_HEADS) else HEAD.pack(0, size, 0) + _OPENING
    return head + encoded + _CLOSING


def json_item(buffer: bytes | bytearray, start: int, end: int) -> Any:
    """Return the item of the frame between two positions."""
    return orjson.loads(buffer[start + _FIRST : end - _LAST])
