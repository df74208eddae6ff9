"""One delivery from payload to ending: what happens before and round an open response stream.

Rejections are in test_bad_input.py, ends of an open stream in test_exchange.py.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from dialback.ingress.context import Context
from dialback.ingress.request import ParsedRequest, Rejection, parse_unary
from dialback.outcomes import (
    Delivery,
    HandedBack,
    Outcome,
    Revocation,
    Revoked,
    Superseded,
)
from dialback.transport.dial import DialSettings
from support.black_hole import BlackHole, NobodyListens
from support.frames import request_payload
from support.ingress_rig import (
    ACCEPTED,
    FINAL,
    HANDSHAKE,
    PATIENT,
    SENTINEL,
    Counts,
    IngressRig,
    error_item,
    error_message,
    finished,
    item,
)
from support.scripted_requester import KILL, CallHome, ScriptedRequester

NOW_NS = 1_000_000_000_000_000_000
UNTIRING = DialSettings(attempts=1_000_000, total_timeout=PATIENT, connect_timeout=PATIENT)


class Called:
    """Yields the request, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        self.calls += 1
        yield request


# --- the dial -----------------------------------------------------------------------------------


async def test_dials_are_retried_and_counted() -> None:
    retries: list[int] = []
    rig = IngressRig(
        Called(),
        dial=DialSettings(attempts=3, total_timeout=PATIENT),
        on_retry=lambda: retries.append(1),
    )
    with NobodyListens() as nobody:
        ending = finished(await rig.start(request_payload(nobody.address)))
    assert (ending.outcome, ending.dials, len(retries)) == (Outcome.REQUESTER_GONE, 3, 2)
    assert ending.reason.endswith("(3 attempts)")
    assert rig.counts() == Counts(errors={"response_stream": 1}, first_responses=0)


@pytest.mark.parametrize("header", ["Dialback-Deadline", "Dialback-Start-By"])
async def test_dial_goes_on_no_longer_than_the_caller_waits(header: str) -> None:
    rig = IngressRig(Called(), dial=UNTIRING)
    with BlackHole() as hole:
        headers = {header: str(NOW_NS + 10_000_000)}
        ending = finished(await rig.start(request_payload(hole.address), headers=headers))
    assert ending.outcome is Outcome.REQUESTER_UNREACHABLE


@pytest.mark.parametrize("revoked", [Revoked.SHUTDOWN, Revoked.LEASE_LOST])
async def test_revoked_delivery_is_given_back_before_it_is_dialled(revoked: Revoked) -> None:
    revocation = Revocation()
    revocation.set(revoked)
    rig = IngressRig(Called())
    async with ScriptedRequester() as requester:
        ending = await rig.start(request_payload(requester.address), revocation=revocation)
        assert not requester.dialled
    expected = {
        Revoked.SHUTDOWN: HandedBack(request_id="req-1", reason="shutdown before the engine ran"),
        Revoked.LEASE_LOST: Superseded(
            request_id="req-1", reason="lease lost before the engine ran"
        ),
    }
    assert ending == expected[revoked]
    assert rig.counts() == Counts(first_responses=0)


@pytest.mark.parametrize(
    ("revoked", "kind"), [(Revoked.SHUTDOWN, HandedBack), (Revoked.LEASE_LOST, Superseded)]
)
async def test_delivery_that_is_revoked_while_it_is_dialled_is_given_back(
    revoked: Revoked, kind: type[object]
) -> None:
    revocation = Revocation()
    engine = Called()
    rig = IngressRig(engine, dial=UNTIRING, on_retry=lambda: revocation.set(revoked))
    with NobodyListens() as nobody:
        ending = await rig.start(request_payload(nobody.address), revocation=revocation)
    assert isinstance(ending, kind)
    assert engine.calls == 0
    assert rig.counts() == Counts(first_responses=0)


async def test_cancelled_dial_is_a_cancellation() -> None:
    def cancel() -> None:
        serving.cancel()

    rig = IngressRig(Called(), dial=UNTIRING, on_retry=cancel)
    with NobodyListens() as nobody:
        serving = rig.start(request_payload(nobody.address))
        with pytest.raises(asyncio.CancelledError):
            await serving
    assert rig.counts() == Counts(first_responses=0)


# --- expired ------------------------------------------------------------------------------------

EXPIRED = error_item(
    "ResponseTimeout",
    "DeadlineExceeded",
    "backend.response_timeout",
    "the request's deadline passed while it was queued",
)


@pytest.mark.parametrize(
    "headers",
    [
        {"Dialback-Deadline": str(NOW_NS)},
        {"Dialback-Start-By": str(NOW_NS)},
        {"Dialback-Deadline": str(NOW_NS + 1), "Dialback-Start-By": str(NOW_NS - 1)},
    ],
)
async def test_expired_request_is_answered_and_not_run(headers: Mapping[str, str]) -> None:
    engine = Called()
    rig = IngressRig(engine, now_ns=lambda: NOW_NS)
    async with ScriptedRequester() as requester:
        serving = rig.start(request_payload(requester.address), headers=headers)
        connection = await requester.connection()
        await connection.frames()
        await connection.close()
        ending = finished(await serving)
    assert bytes(connection.received) == HANDSHAKE + ACCEPTED + EXPIRED + FINAL + SENTINEL
    assert (ending.outcome, ending.error_type) == (Outcome.EXPIRED, None)
    assert (ending.request_id, ending.caller) == ("req-1", requester.address)
    assert (ending.caller_told, engine.calls) == (True, 0)
    assert rig.counts() == Counts(first_responses=0)


async def test_expired_request_whose_caller_has_gone_has_expired_all_the_same() -> None:
    rig = IngressRig(Called())
    headers = {"Dialback-Deadline": "1"}
    with NobodyListens() as nobody:
        ending = finished(await rig.start(request_payload(nobody.address), headers=headers))
    assert (ending.outcome, ending.caller_told) == (Outcome.EXPIRED, False)
    assert rig.counts() == Counts(first_responses=0)


@pytest.mark.parametrize("how", ["reset", "kill"])
async def test_caller_that_wants_no_answer_changes_nothing(how: str) -> None:
    rig = IngressRig(Called())
    async with ScriptedRequester() as requester:
        serving = rig.start(request_payload(requester.address), headers={"Dialback-Deadline": "1"})
        connection = await requester.connection()
        if how == "reset":
            connection.reset()
        else:
            await connection.send(KILL)
            await connection.frames()
            await connection.close()
        ending = finished(await serving)
    assert (ending.outcome, ending.error_type) == (Outcome.EXPIRED, None)
    assert rig.counts() == Counts(first_responses=0)


# --- times, health ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "seconds"), [(NOW_NS - 2_000_000_000, 2), (NOW_NS + 5_000_000_000, 0)]
)
async def test_transit_time_is_observed_and_never_negative(sent: int, seconds: int) -> None:
    rig = IngressRig(Called(), now_ns=lambda: NOW_NS)
    async with ScriptedRequester() as requester:
        serving = rig.start(request_payload(requester.address, frontend_send_ts_ns=sent))
        connection = await requester.connection()
        await connection.frames()
        await connection.close()
        await serving
    assert rig.sample("dynamo_work_handler_network_transit_seconds_count") == 1
    assert rig.sample("dynamo_work_handler_network_transit_seconds_sum") == seconds


async def test_request_bytes_are_those_of_the_whole_payload() -> None:
    rig = IngressRig(Called())
    payload = request_payload("169.254.169.254:80", "x" * 1000)
    await rig.start(payload)
    assert rig.sample("dynamo_component_request_bytes_total") == len(payload)


# --- faults of our own --------------------------------------------------------------------------


def _broken_parse(delivery: Delivery) -> ParsedRequest | Rejection:
    raise ZeroDivisionError("our own mistake")


async def test_fault_of_our_own_before_the_handshake_is_retried(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = IngressRig(Called(), parse=_broken_parse)
    ending = finished(await rig.start(b"", headers={"request-id": "named"}))
    assert ending.outcome is Outcome.REQUESTER_UNREACHABLE
    assert ending.reason == "fault in dialback: ZeroDivisionError: our own mistake"
    assert (ending.request_id, ending.error_type) == ("named", None)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    assert rig.counts() == Counts(first_responses=0)


def _parse_endless_deadline(delivery: Delivery) -> ParsedRequest | Rejection:
    parsed = parse_unary(delivery)
    assert isinstance(parsed, ParsedRequest)
    return ParsedRequest(
        request_id=parsed.request_id,
        value=parsed.value,
        metadata=parsed.metadata,
        call_home=parsed.call_home,
        deadline_ns=10**30,
    )


async def test_fault_of_our_own_after_the_handshake_is_told_to_the_caller(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = Called()
    rig = IngressRig(engine, parse=_parse_endless_deadline)
    async with ScriptedRequester() as requester:
        serving = rig.start(request_payload(requester.address, 1))
        connection = await requester.connection()
        frames = await connection.frames()
        await connection.close()
        ending = finished(await serving)
    assert ending.outcome is Outcome.ENGINE_FAILED
    assert ending.reason.startswith("fault in dialback: ")
    assert ending.request_id == "req-1"
    received = bytes(connection.received)
    assert received.startswith(HANDSHAKE + ACCEPTED)
    assert received.endswith(FINAL + SENTINEL)
    assert len(frames) == 5
    assert b'"event":"error"' in frames[2].data
    assert engine.calls == 0
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_fault_of_our_own_is_final_even_if_the_caller_cannot_be_told() -> None:
    rig = IngressRig(Called(), parse=_parse_endless_deadline, refusal_wait=0.02)
    async with ScriptedRequester() as requester:
        serving = rig.start(request_payload(requester.address, 1), number=2)
        connection = await requester.connection()
        await connection.frame()
        await connection.send(KILL)
        ending = finished(await serving)
    assert ending.outcome is Outcome.ENGINE_FAILED
    assert bytes(connection.received) == HANDSHAKE


async def test_fault_of_the_health_notifier_at_the_end_is_our_own() -> None:
    def broken() -> None:
        raise OSError("no file to touch")

    async def nothing(request: Any, context: Context) -> AsyncIterator[Any]:
        return
        yield

    rig = IngressRig(nothing, on_healthy=broken)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester)
        connection = await requester.connection()
        await connection.frames()
        await connection.close()
        ending = finished(await serving)
    assert bytes(connection.received) == HANDSHAKE + ACCEPTED + FINAL + SENTINEL
    assert ending.outcome is Outcome.ENGINE_FAILED


# --- always -------------------------------------------------------------------------------------


async def test_cancelled_delivery_releases_everything() -> None:
    yielded = asyncio.Event()
    closed: list[bool] = []

    async def waiting(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            yield {"i": 0}
            yielded.set()
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    rig = IngressRig(waiting)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester)
        connection = await requester.connection()
        await yielded.wait()
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert await connection.frames() != []
    assert bytes(connection.received) == HANDSHAKE + ACCEPTED + item({"i": 0})
    assert closed == [True]
    assert (rig.counts().inflight, rig.counts().durations) == (0, 1)


async def test_delivery_that_is_cancelled_in_its_last_wait_is_cancelled() -> None:
    rig = IngressRig(Called())
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester, 1)
        connection = await requester.connection()
        await connection.frames()
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving


async def test_requests_are_served_side_by_side() -> None:
    together = asyncio.Barrier(20)

    async def meet(request: Any, context: Context) -> AsyncIterator[Any]:
        await together.wait()
        yield request

    rig = IngressRig(meet)
    async with ScriptedRequester() as requester:
        servings = [rig.serve(requester, n) for n in range(20)]
        connections = [await requester.connection() for _ in servings]
        await asyncio.gather(*(_read_and_close(connection) for connection in connections))
        endings = [finished(await serving) for serving in servings]
    assert {ending.outcome for ending in endings} == {Outcome.COMPLETED}
    assert rig.counts().requests == 20
    assert rig.counts().inflight == 0


async def _read_and_close(connection: CallHome) -> None:
    await connection.frames()
    await connection.close()


# --- poison -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_crashes", "said"),
    [
        (3, "given up: 3 workers died while they had it (delivery 11)"),
        (1, "given up: 1 worker died while they had it (delivery 11)"),
    ],
)
async def test_request_whose_workers_died_is_poison_and_its_caller_hears(
    max_crashes: int, said: str
) -> None:
    engine = Called()
    rig = IngressRig(engine, max_crashes=max_crashes, refusal_wait=0.02)
    async with ScriptedRequester() as requester:
        serving = rig.start(request_payload(requester.address), number=11, crashes=max_crashes)
        connection = await requester.connection()
        frames = await connection.frames()
        await connection.close()
        ending = finished(await serving)
    assert error_message(frames) == said
    assert (ending.outcome, ending.caller_told, engine.calls) == (Outcome.POISON, True, 0)
    assert rig.counts() == Counts(first_responses=0)


@pytest.mark.parametrize(
    ("headers", "crashes", "outcome"),
    [({}, 3, Outcome.POISON), ({"Dialback-Deadline": "1"}, 0, Outcome.EXPIRED)],
)
async def test_caller_who_has_left_the_stream_is_not_said_to_be_told_of_a_refusal(
    headers: dict[str, str], crashes: int, outcome: Outcome
) -> None:
    rig = IngressRig(Called())
    async with ScriptedRequester() as requester:
        payload = request_payload(requester.address)
        serving = rig.start(payload, headers=headers, number=4, crashes=crashes)
        connection = await requester.connection()
        await connection.frame()
        connection.reset()  # a spent subject
        ending = finished(await serving)
    assert (ending.outcome, ending.caller_told) == (outcome, False)
    assert bytes(connection.received) == HANDSHAKE


async def test_first_delivery_that_is_refused_does_not_wait_for_a_spent_subject() -> None:
    rig = IngressRig(Called(), max_crashes=0)  # waiting would take it a quarter of an hour
    async with ScriptedRequester() as requester:
        serving = rig.start(request_payload(requester.address))
        connection = await requester.connection()
        await connection.frames()
        await connection.close()
        ending = finished(await serving)
    assert (ending.outcome, ending.caller_told) == (Outcome.POISON, True)


async def test_request_that_was_delivered_often_but_never_crashed_is_served() -> None:
    engine = Called()
    rig = IngressRig(engine, refusal_wait=0.0)
    async with ScriptedRequester() as requester:
        serving = rig.start(request_payload(requester.address), number=1000, crashes=2)
        connection = await requester.connection()
        await connection.frames()
        await connection.close()
        ending = finished(await serving)
    assert (ending.outcome, engine.calls) == (Outcome.COMPLETED, 1)
