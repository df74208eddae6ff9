"""Which server a lost connection tries next, and when."""

import random
from typing import Any, Final

from nats.aio.client import Client

_RECONNECT_WAIT: Final = 0.2  # seconds, doubled twice at most, and with jitter
_MAX_RECONNECT_WAIT: Final = 0.8  # a server that is back is noticed within a second


class Reconnects:
    """Chooses the server of each reconnect, and spreads those of many workers over time.

    nats-py has no jitter of its own. Chance alone may choose a silent server again and again.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._last = ""

    def choose(self, servers: list[Any], info: dict[str, Any]) -> tuple[Any, float]:
        """Return a server, never the same twice if there is another, and seconds to wait."""
        del info
        if (failed := self._client._transport) is not None:  # pyright: ignore[reportPrivateUsage]
            # nats-py forgets the connection to a silent server, and leaves it open.
            failed.close()  # type: ignore[no-untyped-call]
        others = [server for server in servers if server.uri.netloc != self._last]
        candidate = random.choice(others or servers)  # noqa: S311 -- not a secret
        self._last = candidate.uri.netloc
        attempts = max(0, int(candidate.reconnects))
        wait = min(_MAX_RECONNECT_WAIT, _RECONNECT_WAIT * 2 ** min(attempts, 2))
        return candidate, wait * random.uniform(0.2, 1.0)  # noqa: S311
