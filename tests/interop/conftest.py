"""Peers of each release and codec, and the table at the end: case x release x role."""

import secrets
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator

import pytest
import pytest_asyncio

from dialback.queue.client import QueueClient
from dialback.queue.connection import ServerAddress
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint
from interop.environments import RELEASES, python_of
from support.dynamo import Dynamo, DynamoClient, DynamoWorker

CODECS = ("json", "msgpack")
COMBINATIONS = [(release, codec) for release in RELEASES for codec in CODECS]
ROLES = {
    "test_dynamo_client": "Dynamo client, our worker",
    "test_dynamo_worker": "our requester, Dynamo worker",
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "case(name): the row of the interop table it belongs to")


# --- the peers ----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def every_dynamo(
    nats_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Dynamo]:
    """Each release with each codec."""
    return {
        (release, codec): Dynamo(
            release=release,
            codec=codec,
            python=python_of(release),
            server=nats_server.url,
            kv=tmp_path_factory.mktemp(f"kv-{release}-{codec}"),
        )
        for release, codec in COMBINATIONS
    }


@pytest.fixture(scope="session", params=COMBINATIONS, ids="-".join)
def dynamo(request: pytest.FixtureRequest, every_dynamo: dict[tuple[str, str], Dynamo]) -> Dynamo:
    """One release with one codec."""
    return every_dynamo[request.param]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def dynamo_client(dynamo: Dynamo) -> AsyncGenerator[DynamoClient]:
    """A client process, shared by all tests that leave it alive."""
    async with dynamo.client() as client:
        yield client


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def dynamo_worker(dynamo: Dynamo) -> AsyncGenerator[DynamoWorker]:
    """A worker process, shared by all tests that leave it alive."""
    async with dynamo.worker() as worker:
        yield worker


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def their_subject(dynamo_worker: DynamoWorker) -> str:
    """The subject of an endpoint that a Dynamo worker serves, for comparisons."""
    return await dynamo_worker.serve(Endpoint("interop", "theirs", "generate"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def operator(nats_server: EmbeddedServer) -> AsyncGenerator[QueueClient]:
    """A connection to look into the queues with."""
    client = await QueueClient.open(
        ServerAddress(url=nats_server.url), name="interop", role="operator"
    )
    yield client
    await client.close()


@pytest.fixture
def endpoint() -> Endpoint:
    """An endpoint that no other test uses."""
    return Endpoint("interop", "backend", f"e{secrets.token_hex(4)}")


# --- the table ----------------------------------------------------------------------------

Cell = tuple[str, str, str]  # case, release, role


def _cells(item: pytest.Item) -> Iterator[tuple[Cell, str]]:
    """The cells of the table that a test fills, each with its codec."""
    marker = item.get_closest_marker("case")
    if marker is None:
        return
    role = ROLES[item.path.stem]
    callspec = getattr(item, "callspec", None)
    chosen = callspec.params.get("dynamo") if callspec else None
    for release, codec in [chosen] if chosen else COMBINATIONS:
        yield (marker.args[0], release, role), codec


_CELLS = pytest.StashKey[set[Cell]]()


@pytest.hookimpl(tryfirst=True)  # before -k takes some away
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[_CELLS] = set()
    for item in items:
        for cell, codec in _cells(item):
            item.user_properties.append(("interop", (cell, codec)))
            config.stash[_CELLS].add(cell)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    results: dict[Cell, dict[str, bool]] = defaultdict(dict)
    for outcome, good in (("passed", True), ("failed", False), ("error", False)):
        for report in terminalreporter.stats.get(outcome, []):
            for name, value in getattr(report, "user_properties", ()):  # a broken file has none
                if name == "interop":
                    cell, codec = value
                    results[cell][codec] = results[cell].get(codec, True) and good
    if results:
        terminalreporter.section("interop: case x release x role")
        for line in table(results):
            terminalreporter.line(line)


def table(results: dict[Cell, dict[str, bool]]) -> list[str]:
    """Return the Markdown table of what ran."""
    columns = [(release, role) for role in ROLES.values() for release in RELEASES]
    cases = dict.fromkeys(case for case, _, _ in results)
    rows = [
        ["case", *(f"{role}, {release}" for release, role in columns)],
        ["---"] * (len(columns) + 1),
        *([case, *(_shown(results.get((case, *column))) for column in columns)] for case in cases),
    ]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _shown(codecs: dict[str, bool] | None) -> str:
    if codecs is None:
        return "-"
    return " ".join(codec if good else f"{codec} FAILED" for codec, good in sorted(codecs.items()))


@pytest.fixture
def collected(pytestconfig: pytest.Config) -> set[Cell]:
    """The cells that the collected tests fill."""
    return pytestconfig.stash[_CELLS]
