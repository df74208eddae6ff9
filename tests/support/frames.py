"""Frames and payloads for tests: real bytes with chosen faults."""

from pathlib import Path
from typing import Any

import orjson

from dialback.transport.two_part import TwoPartDecoder, TwoPartMessage, encode

VECTORS = Path(__file__).parent.parent / "vectors"


def tcp_info(address: str, **changes: Any) -> dict[str, Any]:
    """The ``info`` document of connection info, with changes; ``None`` removes a key."""
    info: dict[str, Any] = {
        "address": address,
        "subject": "6f1d1a2e-3b4c-4d5e-8f60-718293a4b5c6",
        "context": "req-1",
        "stream_type": "response",
    }
    return _changed(info, changes)


def control(address: str, *, info: dict[str, Any] | str | None = None, **changes: Any) -> bytes:
    """A request's control message, with changes; ``None`` removes a key."""
    document = info if info is not None else tcp_info(address)
    text = document if isinstance(document, str) else orjson.dumps(document).decode()
    message: dict[str, Any] = {
        "id": "req-1",
        "request_type": "single_in",
        "response_type": "many_out",
        "payload_codec": "json",
        "connection_info": {"transport": "tcp_server", "info": text},
    }
    return orjson.dumps(_changed(message, changes))


def request_payload(
    address: str,
    value: Any = None,
    *,
    info: dict[str, Any] | str | None = None,
    body: bytes | None = None,
    **changes: Any,
) -> bytes:
    """A whole request payload that dials back ``address``."""
    data = body if body is not None else orjson.dumps(value)
    return encode(control(address, info=info, **changes), data)


def decode_all(stream: bytes) -> list[TwoPartMessage]:
    """All frames in a byte string."""
    decoder = TwoPartDecoder()
    decoder.receive_data(stream)
    messages: list[TwoPartMessage] = []
    while (message := decoder.next_message()) is not None:
        messages.append(message)
    return messages


def _changed(document: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = document | changes
    return {key: value for key, value in merged.items() if value is not None}
