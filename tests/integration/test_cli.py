"""The commands that operators use, run against a real server with real messages."""

import asyncio
import re
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from dialback.cli import requeue
from dialback.errors import NotFoundError, QueueError, ServerUnavailableError
from dialback.queue.api import JetStreamApi
from dialback.queue.client import QueueClient
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.inspection import Requeued, RequeueStatus
from dialback.queue.inspector import Inspector
from dialback.queue.topology import Endpoint, Lane, QueueSettings, Topology
from support.cli import Ran, dialback_beside
from support.letters import CALLER, bury, consumers, depth, provision, publish, request_of

pytestmark = pytest.mark.integration
DOCS = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()


class Cli:
    """The command line, with the test's server."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __call__(self, *arguments: str, stdin: str | None = None) -> Ran:
        return await dialback_beside(*arguments, "-s", self._url, stdin=stdin)


@pytest.fixture
def cli(nats_server: EmbeddedServer) -> Cli:
    return Cli(nats_server.url)


@pytest.fixture
async def name(queue_client: QueueClient, endpoint: Endpoint) -> str:
    """A provisioned endpoint's name."""
    await provision(queue_client, endpoint)
    return str(endpoint)


def documented(section: str) -> set[str]:
    """The JSON fields that docs/cli.md lists under a heading."""
    text = DOCS.split(f"### `dialback {section}`")[1].split("\n### ")[0]
    table = text.split("JSON fields")[1]
    return set(re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE))


# --- submit -----------------------------------------------------------------------------


async def test_a_full_queue_is_named_with_what_to_do(
    cli: Cli, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await Topology(queue_client.api, endpoint, QueueSettings(max_messages=1)).ensure()
    await publish(queue_client, endpoint, "r-1")
    ran = await cli("submit", str(endpoint), "1")
    assert (ran.exit_code, ran.stdout) == (4, "")
    assert f"the queue of {endpoint} takes no more requests: maximum messages" in ran.stderr
    assert f"dialback queue info {endpoint}" in ran.stderr


# --- queue ------------------------------------------------------------------------------


async def test_queue_ls_is_a_table_for_people(
    cli: Cli, name: str, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await publish(queue_client, endpoint, "r-1", lane=Lane.HIGH)
    ran = await cli("queue", "ls")
    assert ran.exit_code == 0
    head, *rows = [line.split() for line in ran.stdout.splitlines()]
    assert head[:3] == ["ENDPOINT", "LANE", "QUEUED"]
    (high,) = [row for row in rows if row[:2] == [name, "high"]]
    assert high == [name, "high", "1", "0", "0", "0", "00:00", "00:00", "0", "behind"]


@pytest.mark.parametrize("flags", [("--json",), ("-o", "json")])
async def test_queue_ls_as_json_has_the_documented_fields(
    flags: tuple[str, ...], cli: Cli, name: str
) -> None:
    rows = [row for row in (await cli("queue", "ls", *flags)).json if row["endpoint"] == name]
    assert [row["lane"] for row in rows] == ["high", "normal", "low"]
    assert set(rows[0]) == documented("queue ls")
    assert (rows[0]["queued"], rows[0]["oldest_seconds"], rows[0]["state"]) == (0, None, "ok")


async def test_queue_ls_without_queues_says_so(own_server: EmbeddedServer) -> None:
    ran = await Cli(own_server.url)("queue", "ls", "-o", "json")
    assert (ran.exit_code, ran.stdout) == (0, "[]\n")
    assert "no queues here" in ran.stderr


async def test_queue_info_as_json_has_the_documented_fields(
    cli: Cli, name: str, endpoint: Endpoint
) -> None:
    record = (await cli("queue", "info", name, "--json")).json
    assert set(record) == documented("queue info")
    assert (record["stream"], record["drift"], record["advice"]) == (endpoint.stream, [], [])
    assert record["settings"]["ack_wait_seconds"] == 30.0


async def test_queue_info_is_compared_with_this_environment(
    cli: Cli, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIALBACK_ACK_WAIT", "60")
    ran = await cli("queue", "info", name)
    assert "  consumer low: ack_wait is 30 s, wanted 60 s\n" in ran.stdout
    for title in ("LANES", "SETTINGS", "DRIFT", "ADVICE\n  none"):
        assert f"\n{title}\n" in ran.stdout


async def test_queue_info_shows_a_lane_nobody_can_take(
    cli: Cli, name: str, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await queue_client.api.request(f"CONSUMER.DELETE.{endpoint.stream}.low")
    await queue_client.api.request(
        f"CONSUMER.PAUSE.{endpoint.stream}.high", {"pause_until": "2099-01-01T00:00:00Z"}
    )
    lanes = (await cli("queue", "info", name, "--json")).json["lanes"]
    assert [lane["state"] for lane in lanes] == ["paused", "ok", "no_consumer"]
    assert lanes[2]["queued"] is None


async def test_queue_peek_says_why_a_worker_would_refuse(
    cli: Cli, name: str, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await publish(queue_client, endpoint, "good")
    await publish(queue_client, endpoint, "bad", payload=b"garbage")
    late = {"Dialback-Deadline": str(time.time_ns() - 1)}
    await publish(queue_client, endpoint, "late", headers=late)
    good, bad, expired = (await cli("queue", "peek", name, "--json")).json
    assert set(good) == documented("queue peek") - {"body", "body_truncated"}
    assert good["refusal"] is None
    assert (good["caller"], good["codec"], good["state"]) == (CALLER, "json", "queued")
    assert bad["refusal"]["outcome"] == "invalid"
    assert "No message decoded" in bad["refusal"]["reason"]
    assert expired["refusal"]["outcome"] == "expired"
    table = await cli("queue", "peek", name)
    assert "invalid: Invalid message: No message decoded" in table.stdout
    assert "passed" in table.stdout


async def test_bodies_are_shown_only_when_asked_for(
    cli: Cli, name: str, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    payload = request_of("r-1", {"prompt": "a secret"})
    await publish(queue_client, endpoint, "r-1", payload=payload)
    await bury(queue_client, endpoint, "r-2", payload=payload)
    commands = (("queue", "peek", name), ("dlq", "show", name, "r-2"))
    for command in commands:
        for flags in ((), ("--json",)):
            assert "secret" not in (await cli(*command, *flags)).stdout
            assert "a secret" in (await cli(*command, *flags, "--body")).stdout
    (row,) = (await cli(*commands[0], "--body", "--json")).json
    assert set(row) == documented("queue peek")
    (row,) = (await cli(*commands[0], "--body", "--max-bytes", "5", "--json")).json
    assert (row["body"], row["body_truncated"]) == ('{"pro…', True)


async def test_queue_peek_of_one_lane(
    cli: Cli, name: str, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    for number, lane in enumerate(Lane):
        await publish(queue_client, endpoint, f"r-{number}", lane=lane)
    rows = (await cli("queue", "peek", name, "--lane", "low", "-o", "jsonl")).lines
    assert [row["request_id"] for row in rows] == ["r-2"]
    assert len((await cli("queue", "peek", name, "--limit", "2", "-o", "jsonl")).lines) == 2


async def test_an_empty_queue_says_so(cli: Cli, name: str) -> None:
    ran = await cli("queue", "peek", name, "-o", "jsonl")
    assert (ran.exit_code, ran.stdout, ran.stderr) == (0, "", "the queue is empty\n")


# --- dlq: looking -----------------------------------------------------------------------


async def test_dlq_ls_of_one_endpoint_and_of_all(
    cli: Cli, name: str, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    for number in (1, 2, 3):
        await bury(queue_client, endpoint, f"r-{number}", sequence=number, lane=Lane.LOW)
    rows = (await cli("dlq", "ls", name, "--json")).json
    assert [row["request_id"] for row in rows] == ["r-1", "r-2", "r-3"]
    assert set(rows[0]) == documented("dlq ls")
    assert (rows[0]["outcome"], rows[0]["deliveries"], rows[0]["requeued"]) == (
        "requester_gone",
        2,
        0,
    )
    assert rows[0]["lane"] == "low"
    everywhere = (await cli("dlq", "ls", "-o", "jsonl")).lines
    assert next(row for row in everywhere if row["endpoint"] == name)["request_id"] == "r-1"
    some = await cli("dlq", "ls", name, "--limit", "2")
    assert len(some.stdout.splitlines()) == 3
    assert some.stderr == "2 of 3; --limit shows more\n"


async def test_no_dead_letters_is_no_error(cli: Cli, name: str) -> None:
    ran = await cli("dlq", "ls", name, "--json")
    assert (ran.exit_code, ran.stdout, ran.stderr) == (0, "[]\n", "no dead letters\n")


async def test_dlq_show_tells_all_but_the_body(
    cli: Cli, name: str, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    headers = {"authorization": "Bearer secret"}
    await bury(queue_client, endpoint, "9f2c71e0", payload=b"garbage", headers=headers)
    ran = await cli("dlq", "show", name, "9f2", "--json")
    record = ran.json
    assert set(record) == documented("dlq show") - {"body", "body_truncated"}
    assert "secret" not in ran.stdout
    assert "authorization" in record["header_names"]
    assert record["origin"].startswith(f"{endpoint.stream}:1:")
    assert record["origin_subject"] == endpoint.request_subject(Lane.NORMAL, "token")
    assert record["refusal"]["outcome"] == "invalid"
    text = await cli("dlq", "show", name, "seq:1", "--body")
    assert "\nreason          nobody listens at 127.0.0.1:9\n" in text.stdout
    assert "\nbody            -\n" in text.stdout


async def test_an_ambiguous_id_is_wrong_usage_and_lists_the_candidates(
    cli: Cli, name: str, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await bury(queue_client, endpoint, "req-1", sequence=1)
    await bury(queue_client, endpoint, "req-2", sequence=2)
    ran = await cli("dlq", "show", name, "req")
    assert ran.exit_code == 2
    assert ran.stderr == "error: 'req' means 2 dead letters: req-1, req-2\n"


async def test_looking_creates_no_consumer(
    cli: Cli, name: str, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await publish(queue_client, endpoint, "r-1")
    await bury(queue_client, endpoint, "r-2")
    before = await consumers(queue_client, endpoint)
    for command in (
        ("queue", "ls"),
        ("queue", "info", name),
        ("queue", "peek", name),
        ("dlq", "ls", name),
        ("dlq", "ls"),
        ("dlq", "show", name, "r-2"),
        ("dlq", "requeue", name, "--all", "--dry-run"),
    ):
        assert (await cli(*command)).exit_code == 0
    assert await consumers(queue_client, endpoint) == before == [3, 0]
    assert await depth(queue_client, endpoint.stream) == 1
    assert await depth(queue_client, endpoint.dead_stream) == 1


# --- dlq requeue ------------------------------------------------------------------------


async def test_requeue_ends_with_the_letter_gone_and_the_request_queued(
    cli: Cli, name: str, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await bury(queue_client, endpoint, "r-1")
    ran = await cli("dlq", "requeue", name, "r-1", "-y", "--json")
    assert ran.exit_code == 0
    (row,) = ran.json
    assert set(row) == documented("dlq requeue")
    assert (row["status"], row["queued_sequence"]) == ("requeued", 1)
    assert await depth(queue_client, endpoint.dead_stream) == 0
    assert await depth(queue_client, endpoint.stream) == 1


async def test_requeue_all_has_a_brake(
    cli: Cli, name: str, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    for number in range(1, 5):
        await bury(queue_client, endpoint, f"r-{number}", sequence=number)
    plan = await cli("dlq", "requeue", name, "--all", "--max", "3", "--dry-run", "-o", "jsonl")
    assert [row["status"] for row in plan.lines] == ["planned"] * 3
    assert f"3 to requeue to {name}, without deadlines." in plan.stderr
    assert "caller is gone will become dead letters again" in plan.stderr
    assert "1 more stay (--max 3)" in plan.stderr
    assert await depth(queue_client, endpoint.dead_stream) == 4
    ran = await cli("dlq", "requeue", name, "--all", "--max", "3", "--yes")
    assert ran.stdout.count("requeued") == 3
    assert await depth(queue_client, endpoint.dead_stream) == 1
    assert await depth(queue_client, endpoint.stream) == 3


async def test_without_a_terminal_nothing_is_assumed(
    cli: Cli, name: str, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await bury(queue_client, endpoint, "r-1")
    ran = await cli("dlq", "requeue", name, "r-1", stdin="y\n")
    assert ran.exit_code == 4
    assert "add -y" in ran.stderr
    assert await depth(queue_client, endpoint.dead_stream) == 1


@pytest.mark.parametrize(
    ("answer", "code", "left"), [("y\n", 0, 0), ("n\n", 4, 1), ("\n", 4, 1), ("", 4, 1)]
)
async def test_on_a_terminal_the_plan_is_shown_and_confirmed(
    *,
    answer: str,
    code: int,
    left: int,
    cli: Cli,
    name: str,
    queue_client: QueueClient,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(requeue, "is_interactive", lambda: True)
    await bury(queue_client, endpoint, "r-1")
    ran = await cli("dlq", "requeue", name, "r-1", "--json", stdin=answer)
    assert ran.exit_code == code
    assert "r-1" in ran.stderr
    assert "Requeue them? [y/N]" in ran.stderr
    assert [row["status"] for row in ran.json] == ["requeued"] if code == 0 else not ran.stdout
    assert await depth(queue_client, endpoint.dead_stream) == left


@pytest.mark.parametrize("arguments", [(), ("r-1", "--all")])
async def test_requeue_needs_ids_or_all(arguments: tuple[str, ...], cli: Cli, name: str) -> None:
    ran = await cli("dlq", "requeue", name, *arguments, "-y")
    assert ran.exit_code == 2
    assert "or give --all" in ran.stderr


async def test_one_unknown_id_stops_the_whole_plan(
    cli: Cli, name: str, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await bury(queue_client, endpoint, "r-1")
    ran = await cli("dlq", "requeue", name, "r-1", "nothing", "-y")
    assert ran.exit_code == 3
    assert await depth(queue_client, endpoint.dead_stream) == 1


async def test_a_letter_named_twice_is_requeued_once(
    cli: Cli, name: str, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await bury(queue_client, endpoint, "r-1")
    ran = await cli("dlq", "requeue", name, "r-1", "seq:1", "-y", "-o", "jsonl")
    assert [row["status"] for row in ran.lines] == ["requeued"]


async def test_nothing_to_requeue_is_no_error(cli: Cli, name: str) -> None:
    ran = await cli("dlq", "requeue", name, "--all", "-y", "--json")
    assert (ran.exit_code, ran.stdout, ran.stderr) == (0, "[]\n", "no dead letters\n")


async def test_partly_failed_is_5_and_all_failed_is_1(
    cli: Cli, name: str, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await bury(queue_client, endpoint, "bad", sequence=1, subject="somebody.elses")
    await bury(queue_client, endpoint, "good", sequence=2)
    ran = await cli("dlq", "requeue", name, "--all", "-y", "-o", "jsonl")
    assert ran.exit_code == 5
    assert [row["status"] for row in ran.lines] == ["failed", "requeued"]
    assert "is no subject of" in ran.lines[0]["reason"]
    again = await cli("dlq", "requeue", name, "--all", "-y")
    assert again.exit_code == 1


@pytest.mark.parametrize(("done", "code"), [(0, 69), (1, 5)])
async def test_a_server_that_goes_away_ends_the_work_and_says_what_was_done(
    *,
    done: int,
    code: int,
    cli: Cli,
    name: str,
    queue_client: QueueClient,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def requeue_some(self: Inspector, endpoint: Endpoint, sequence: int) -> Requeued:
        del self, endpoint
        if sequence > done:
            raise ServerUnavailableError("gone")
        return Requeued(sequence=sequence, status=RequeueStatus.REQUEUED, queued_sequence=1)

    for number in (1, 2, 3):
        await bury(queue_client, endpoint, f"r-{number}", sequence=number)
    monkeypatch.setattr(Inspector, "requeue", requeue_some)
    ran = await cli("dlq", "requeue", name, "--all", "-y", "-o", "jsonl")
    assert ran.exit_code == code
    assert len(ran.lines) == done
    assert f"{3 - done} of 3 not done: gone" in ran.stderr


async def test_a_letter_left_behind_counts_as_partly_failed(
    cli: Cli,
    name: str,
    queue_client: QueueClient,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(self: JetStreamApi, stream: str, sequence: int) -> None:
        raise QueueError(f"{stream} {sequence} is sealed")

    await bury(queue_client, endpoint, "r-1")
    monkeypatch.setattr(JetStreamApi, "delete_message", refuse)
    ran = await cli("dlq", "requeue", name, "r-1", "-y", "--json")
    assert (ran.exit_code, ran.json[0]["status"]) == (5, "left")


# --- all commands -----------------------------------------------------------------------

ENDPOINT_COMMANDS = (
    ("queue", "info"),
    ("queue", "peek"),
    ("dlq", "ls"),
    ("dlq", "show"),
    ("dlq", "requeue"),
)
_MORE = {"show": ("x",), "requeue": ("--all", "-y")}


@pytest.mark.parametrize("command", ENDPOINT_COMMANDS, ids=" ".join)
async def test_an_unknown_endpoint_is_3(
    command: tuple[str, str], cli: Cli, endpoint: Endpoint
) -> None:
    ran = await cli(*command, str(endpoint), *_MORE.get(command[1], ()))
    assert ran.exit_code == 3
    assert f"no queue for endpoint {endpoint}" in ran.stderr
    assert ran.stdout == ""


@pytest.mark.parametrize("command", ENDPOINT_COMMANDS, ids=" ".join)
async def test_a_name_that_is_none_is_wrong_usage(command: tuple[str, str], cli: Cli) -> None:
    ran = await cli(*command, "Not.An.Endpoint", *_MORE.get(command[1], ()))
    assert ran.exit_code == 2
    assert "'Not' is not a name" in ran.stderr


@pytest.mark.parametrize("command", [("queue", "ls"), ("dlq", "ls")], ids=" ".join)
async def test_no_server_is_69(command: tuple[str, str]) -> None:
    ran = await dialback_beside(*command, "-s", "nats://127.0.0.1:1", "--timeout", "0.2")
    assert (ran.exit_code, ran.stdout) == (69, "")
    assert "no nats-server answers at nats://127.0.0.1:1" in ran.stderr


async def test_the_server_may_come_from_the_environment(
    nats_server: EmbeddedServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_SERVER", nats_server.url)
    monkeypatch.setenv("DIALBACK_OUTPUT", "json")
    ran = await dialback_beside("queue", "info", name)
    assert ran.json["endpoint"] == name


async def test_a_misspelt_variable_is_said_and_not_ignored(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIALBACK_SERVR", "nats://x")
    ran = await cli("queue", "ls")
    assert ran.exit_code == 2
    assert "did you mean DIALBACK_SERVER?" in ran.stderr


async def test_the_real_program_keeps_data_and_words_apart(
    nats_server: EmbeddedServer, name: str, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await bury(queue_client, endpoint, "r-1")

    async def run(*arguments: str) -> tuple[int | None, Any, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "dialback", *arguments, "-s", nats_server.url),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode, orjson.loads(out) if out else None, err.decode()

    refused, nothing, words = await run("dlq", "requeue", name, "--all", "--json")
    assert (refused, nothing) == (4, None)
    assert words.startswith("error: this changes the queue and nobody can be asked")
    code, rows, words = await run("dlq", "requeue", name, "--all", "--json", "-y")
    assert (code, [row["status"] for row in rows], words) == (0, ["requeued"], "")
    with pytest.raises(NotFoundError):
        await queue_client.api.get_exact(endpoint.dead_stream, 1)


def test_the_documented_exit_codes_are_the_codes() -> None:
    section = DOCS.split("## Exit codes")[1].split("\n## ")[0]
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}
    assert codes == {0, 1, 2, 3, 4, 5, 69, 70, 75, 77, 130, 143}
