"""What a supervisor and its workers write into the log they share, and who runs a request."""

from typing import Any

from support.supervised_engines import CALLED
from support.worker_process import WorkerProcess

ENGINES = "tests.support.supervised_engines"


async def all_started(supervisor: WorkerProcess, count: int) -> None:
    """Wait until so many worker processes have begun to pull, counted from the beginning."""
    await supervisor.until(lambda event: event["message"] == "worker started", count)


async def call_of(supervisor: WorkerProcess, request_id: str, delivery: int) -> dict[str, Any]:
    """Wait for an engine's call for one delivery of a request; return its log event."""

    def wanted(event: dict[str, Any]) -> bool:
        return event["message"] == CALLED and (
            (event["request_id"], event["delivery"]) == (request_id, delivery)
        )

    await supervisor.until(wanted)
    return next(event for event in supervisor.log if wanted(event))


def events(supervisor: WorkerProcess, message: str) -> list[dict[str, Any]]:
    """The log events with this message so far."""
    return [event for event in supervisor.log if event["message"] == message]


def pids(supervisor: WorkerProcess) -> list[int]:
    """Process ids of the worker processes that run, in the order they were started."""
    ended = {event["pid"] for event in events(supervisor, "worker process ended")}
    started = [event["pid"] for event in events(supervisor, "worker process started")]
    return [pid for pid in started if pid not in ended]
