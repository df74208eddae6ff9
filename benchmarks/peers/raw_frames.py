"""Frames of the raw loop-back: a head of 24 bytes as dialback's, and a body of the same size.

The body is no JSON: its first eight bytes say when it was made, the rest is padding.
"""

import json
import struct
from typing import Any

HEAD = struct.Struct(">QQQ")
STAMPED = struct.Struct(">QQQQ")  # a head, and the nanoseconds at the start of the body
_WRAPPER = len(b'{"data":{"data":},"complete_final":false}')
_NUMBER = 100  # as most items of a stream of 500
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
