"""Where the fuzzer starts: the captured bytes of real Dynamo peers, and the corners."""

from pathlib import Path
from typing import Final

from dialback.transport.two_part import PREFIX, decode, encode

ROOT: Final = Path(__file__).parent.parent
_VECTORS: Final = ROOT / "tests" / "vectors" / "dynamo"
_CORNERS: Final = (
    b"",
    b"\xff" * PREFIX.size,
    PREFIX.pack(2**63, 2**63, 0),
    PREFIX.pack(512, 256, 0),
    PREFIX.pack(513, 0, 0),
    encode(),
    encode(b"h", b"d", checksum=True),
    encode(b'"sentinel"') + encode(b'"stop"') + encode(b'"kill"'),
)


def seeds() -> list[bytes]:
    """All seeds: each captured payload and stream, each request's control message, corners."""
    captured = [path.read_bytes() for path in sorted(_VECTORS.rglob("*.bin"))]
    payloads = sorted(_VECTORS.rglob("client-request.payload.bin"))
    headers = [decode(path.read_bytes()).header for path in payloads]
    endless = headers[0].removesuffix(b"}") + b',"frontend_send_ts_ns":1' + b"0" * 400 + b"}"
    return [*captured, *headers, endless, *_CORNERS]
