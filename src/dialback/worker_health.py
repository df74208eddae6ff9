"""Whether a worker is ready, and whether its pulls are dead; the status server that says so."""

import time
from collections.abc import Callable

from dialback.errors import ConfigError
from dialback.metrics.exposition import Health, StatusServer
from dialback.metrics.worker_metrics import Registry
from dialback.queue.watchdog import Silence


class PullHealth:
    """Watches the pulls: unanswered for half the limit is not ready, silent for all of it dead.

    Any sign of life counts against death, an error status too: a new process would do no
    better. Ready wants a good answer.
    """

    def __init__(self, limit: float) -> None:
        """Watch with a limit in seconds."""
        now = time.monotonic()
        self._limit = limit
        self._answered = 0.0
        self._unanswered = Silence(now)
        self._unheard = Silence(now)

    def look(self, *, heard: float, answered: float, pulling: bool) -> None:
        """Take note of how things are; call it at least every second.

        Args:
            heard: Time of the last message, status or heartbeat.
            answered: Time of the last pull that was answered as it should be; 0.0 for none.
            pulling: Whether pulls should be under way: connected, and a slot is free.
        """
        now = time.monotonic()
        self._answered = answered
        self._unanswered.look(now, heard=answered, expected=pulling)
        self._unheard.look(now, heard=heard, expected=pulling)

    @property
    def dead(self) -> bool:
        """Whether nothing will bring the pulls back but a new process."""
        return self._unheard.seconds > self._limit

    @property
    def problem(self) -> str | None:
        """Why the worker is not ready, if it is the pulls' fault."""
        if not self._answered:
            return "no pull was answered yet"
        return "pulls are stale" if self._unanswered.seconds > self._limit / 2 else None


def not_ready(
    *, draining: bool, connected: bool, engine_ready: bool, pulls: PullHealth
) -> tuple[str, ...]:
    """Return every reason why a worker should get no more traffic; none if it is ready."""
    reasons = (
        (draining, "draining"),
        (not connected, "not connected to NATS"),
        (not engine_ready, "engine not ready"),
        (connected and pulls.problem is not None, pulls.problem or ""),
    )
    return tuple(reason for holds, reason in reasons if holds)


async def start_status(
    registry: Registry, *, host: str, port: int, health: Callable[[], Health]
) -> tuple[StatusServer, int]:
    """Start the status server; return it and its port.

    Raises:
        ConfigError: If the port is taken.
    """
    status = StatusServer(registry, host=host, port=port, health=health)
    try:
        return status, await status.start()
    except OSError as error:
        raise ConfigError(
            f"status server: {error.strerror or error}; set DIALBACK_STATUS_PORT (0: any"
            " free port, -1: off)"
        ) from error
