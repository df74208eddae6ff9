"""(k) The queue half alone: pull, decode, settle; beside FastStream, taskiq and nats-py."""

from typing import Final

from benchmarks.measurement import alternate
from benchmarks.queue_half.jobs import payload_size
from benchmarks.queue_half.rig import SLOTS, draining
from benchmarks.queue_half.systems import dialback, peers
from benchmarks.scenario import Figures, Goal, Lab, Metric, Scenario
from dialback.queue.embedded_server import EmbeddedServer

_JOBS: Final = 2_000
_JOBS_FULL: Final = 20_000
_GOAL: Final = 3.0


async def _measure(lab: Lab) -> list[Figures]:
    count = _JOBS_FULL if lab.full else _JOBS
    systems = {
        "dialback": dialback(["ingress"]),
        "dialback, no log": dialback(["ingress", "events"]),
        "dialback with ingress": dialback(),
        **await peers(),
    }
    async with EmbeddedServer() as server:
        contestants = {name: draining(server, one, count) for name, one in systems.items()}
        runs = await alternate(contestants, lab.rounds, progress=lab.progress)
    goals = [
        Goal(ours=ours, peer=peer, metric=Metric.RATE, at_least=_GOAL)
        for ours, peer in (
            ("dialback", "faststream"),
            ("dialback, no log", "faststream, no log"),
            ("dialback, no log", "faststream, no log, in batches"),
        )
    ]
    title = f"a backlog of {count:,} jobs, one worker process, {SLOTS} in flight"
    return [Figures(title=title, unit="jobs", runs=runs, goals=goals, notes=_notes())]


def _notes() -> list[str]:
    return [
        (
            "Every job is settled by a confirmed acknowledgement; every payload has"
            f" {payload_size()} bytes; every worker runs on uvloop; file storage, default"
            " `sync_interval`."
        ),
        (
            "dialback: a worker's whole queue half, lease thread and metrics included, with one log"
            " line for each request. A real request is read and its deadlines are looked at; then"
            " it has ended, as a peer's job has. With ingress: it is served by an engine of one"
            " item, and only the back-channel is replaced."
        ),
        (
            f"FastStream: `PullSub(batch_size={SLOTS})`, `max_workers={SLOTS}`, `AckPolicy.MANUAL`,"
            " `raw_message.ack_sync()` in the handler; its access log has two lines for each"
            " message. In batches: without `max_workers`, the messages of one batch at once, batch"
            " after batch."
            " All logs go to the null device."
        ),
        (
            f"taskiq: `PullBasedJetStreamBroker(pull_consume_batch={SLOTS})`, `max_async_tasks="
            f"{SLOTS}`, no result backend, no log line for a task; the broker itself does not wait"
            " for confirmation, so a subclass acknowledges by `ack_sync`."
        ),
        (
            f"nats-py alone: `fetch({SLOTS})`, then `json.loads` and `ack_sync` in a task for each"
            " message. It is the limit of what is built on nats-py with a request for each"
            " acknowledgement."
        ),
    ]


SCENARIOS: Final = [
    Scenario(
        letter="k",
        title="the queue half alone: pull, decode, settle",
        measure=_measure,
    )
]
