"""The books of both sides compared: the submitter's ledger, the workers' logs, the server."""

from collections import defaultdict
from dataclasses import dataclass

from dialback.queue.client import QueueClient
from dialback.queue.connection import ServerAddress
from dialback.queue.inspection import Letter
from dialback.queue.inspector import Inspector
from dialback.queue.topology import Endpoint, Lane
from support.chaos import Chaos
from support.ledger import COMPLETE, Ledger
from support.ledger_engine import CALLED
from support.queue_rig import nothing_left

_MANY = 100_000
SPENT = "client_gone"
IN_FLIGHT = "dynamo_component_inflight_requests"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What became of the requests, as the workers and the server have it.

    Attributes:
        outcomes: Request id to the outcomes in the workers' logs.
        unlogged: Requests that no worker logged as finished: its worker was killed between
            settling and logging, or it was never taken.
        letters: The dead letters.
        calls: Request id to process id and delivery number of each run of the engine.
    """

    outcomes: dict[str, list[str]]
    unlogged: set[str]
    letters: list[Letter]
    calls: dict[str, list[tuple[int, int]]]

    @property
    def twice(self) -> dict[str, list[str]]:
        """Requests with more than one outcome."""
        return {i: outcomes for i, outcomes in self.outcomes.items() if len(outcomes) > 1}

    @property
    def reruns(self) -> int:
        """Runs of the engine beyond the first of each request."""
        return sum(len(calls) - 1 for calls in self.calls.values())

    def letter_lines(self) -> list[str]:
        """One line for each dead letter."""
        return [f"{one.request_id}: {one.outcome}: {one.reason}" for one in self.letters]


async def balance(
    server: str,
    endpoint: Endpoint,
    ledger: Ledger,
    chaos: Chaos,
    *,
    foreign: frozenset[str] = frozenset(),
) -> Account:
    """Wait until all is settled, drain the workers, and compare the books.

    Fails unless the queue is empty, nothing is pending, no consumer but the lanes' is there, no
    request is in flight, every worker that was asked to ended with 0, the ledger is in order,
    no request was served twice, and each request without an outcome in a log is one whose last
    worker was killed, or that the caller withdrew (a stream that breaks is withdrawn, too).

    Args:
        server: URL of the nats-server.
        endpoint: Whose queue.
        ledger: The submitter's book.
        chaos: The workers.
        foreign: Ids of requests that were not submitted through the ledger.
    """
    client = await QueueClient.open(ServerAddress(url=server), name="accounts", role="operator")
    try:
        await nothing_left(client, endpoint)
        for worker in chaos.alive:
            await worker.metric_reaches(IN_FLIGHT, 0)
        assert set(await chaos.drain()) <= {0}
        await nothing_left(client, endpoint)
        state = (await client.api.stream_info(endpoint.stream))["state"]
        assert state["consumer_count"] == len(Lane)
        letters = await Inspector(client).dead_letters(endpoint, _MANY)
    finally:
        await client.close()
    ledger.verify()
    account = _account(ledger, chaos, letters)
    logged = set(account.outcomes)
    assert logged <= set(ledger.entries) | foreign, "outcomes of requests that nobody submitted"
    unexplained = {i for i in account.unlogged if not _explained(i, ledger, account, chaos)}
    assert not unexplained, {i: (ledger.entries[i], account.calls.get(i)) for i in unexplained}
    for i, outcomes in account.twice.items():
        # A broker that is killed forgets its last deliveries and makes them again, as first
        # ones. The caller's stream was served once: every other run met a spent subject, or was
        # over before it could hear so and has the same outcome again.
        assert len(set(outcomes) - {SPENT}) <= 1, (i, outcomes)
    assert {letter.request_id for letter in letters} <= logged | account.unlogged
    return account


def _account(ledger: Ledger, chaos: Chaos, letters: list[Letter]) -> Account:
    outcomes: defaultdict[str, list[str]] = defaultdict(list)
    for event in sorted(chaos.events("request finished"), key=lambda event: event["time"]):
        outcomes[event["request_id"]].append(event["outcome"])
    calls: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for event in sorted(chaos.events(CALLED), key=lambda event: event["time"]):
        calls[event["request_id"]].append((event["worker_pid"], event["delivery"]))
    return Account(
        outcomes=dict(outcomes),
        unlogged=set(ledger.entries) - set(outcomes),
        letters=letters,
        calls=dict(calls),
    )


def _explained(request_id: str, ledger: Ledger, account: Account, chaos: Chaos) -> bool:
    """Whether it is known why no worker logged an outcome."""
    entry, calls = ledger.entries[request_id], account.calls.get(request_id)
    if calls and calls[-1][0] in chaos.killed:
        return True
    if entry.end == "left" or entry.caller_side:
        return True  # the caller took it out of the queue again
    if entry.end != COMPLETE and request_id in _superseded(chaos):
        return True  # so it did here: its stream had ended when the worker found its lease lost
    return not calls and entry.end in {"DuplicateRequestError", "QueueFullError"}


def _superseded(chaos: Chaos) -> set[str]:
    """Requests of which a worker lost the lease while it served them."""
    ended = chaos.events("delivery ended")
    return {event["request_id"] for event in ended if event["end"] == "superseded"}
