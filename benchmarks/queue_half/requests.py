"""The requests of the queue's benchmarks: real ones, with a caller that is never dialled."""

import uuid
from typing import Final

from dialback.queue.topology import Endpoint
from dialback.request import Request

ENDPOINT: Final = Endpoint("bench", "queue", "half")
VALUE: Final = {"prompt": "Why is the sky blue, and the sunset red?", "max_tokens": 256}
"""The value of each request, as a small one to a language model."""
_CALLER: Final = "127.0.0.1:9"
_PATIENCE: Final = 3600.0  # seconds


def request() -> tuple[str, bytes, dict[str, str]]:
    """Return subject, payload (control message and body) and headers of one new request."""
    prepared = Request.prepare(
        str(ENDPOINT),
        VALUE,
        timeout=_PATIENCE,
        deadline=_PATIENCE,
        lane="normal",
        codec="json",
        request_id=None,
        metadata=None,
        headers=None,
        context=None,
    )
    return prepared.subject, prepared.payload(str(uuid.uuid4()), _CALLER), prepared.headers()
