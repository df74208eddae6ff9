"""Bad payloads, byte for byte: the right outcome, the caller told, and the next request served.

What becomes of the message is in tests/integration/test_bad_input.py.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pydantic
import pytest
from typing_extensions import override

from dialback.ingress.context import Context
from dialback.metrics.names import ErrorType
from dialback.outcomes import Outcome
from dialback.transport.address import Address
from dialback.transport.dial import Dialer, DialSettings
from dialback.transport.messages import ResumeOffer
from dialback.transport.sender import ResponseSender
from support.bad_payloads import BAD_PAYLOADS, BadPayload
from support.black_hole import BlackHole, NobodyListens
from support.frames import decode_all, request_payload, tcp_info
from support.ingress_rig import (
    ACCEPTED,
    FINAL,
    HANDSHAKE,
    MSGPACK_FINAL,
    SENTINEL,
    Counts,
    IngressRig,
    finished,
    invalid_argument,
    item,
)
from support.scripted_requester import KILL, ScriptedRequester


async def echo(request: Any, context: Context) -> AsyncIterator[Any]:
    yield request


async def assert_served(rig: IngressRig, requester: ScriptedRequester) -> None:
    """The next good request completes."""
    serving = rig.serve(requester, "good")
    connection = await requester.connection()
    await connection.frames()
    await connection.close()
    assert finished(await serving).outcome is Outcome.COMPLETED
    assert bytes(connection.received) == HANDSHAKE + ACCEPTED + item("good") + FINAL + SENTINEL


def told(codec: str, reason: str) -> bytes:
    """What a caller gets that can be told: never an error prologue."""
    if codec == "json":
        return HANDSHAKE + ACCEPTED + invalid_argument(reason) + FINAL + SENTINEL
    (frame,) = decode_all(invalid_argument(reason))
    body = msgspec.msgpack.encode(msgspec.json.decode(frame.data))
    prefix = (0).to_bytes(8) + len(body).to_bytes(8) + bytes(8)
    return HANDSHAKE + ACCEPTED + prefix + body + MSGPACK_FINAL + SENTINEL


@pytest.mark.parametrize("bad", BAD_PAYLOADS, ids=lambda bad: str(bad.name))
async def test_bad_payload_ends_as_it_should_and_spoils_nothing(
    bad: BadPayload, caplog: pytest.LogCaptureFixture
) -> None:
    rig = IngressRig(echo)
    async with ScriptedRequester() as requester:
        payload = bad.build(requester.address)
        serving = rig.start(payload, headers={"request-id": "named"})
        if bad.told:
            connection = await requester.connection()
            await connection.frames()
            await connection.close()
            ending = finished(await serving)
            codec = "msgpack" if b'"msgpack"' in payload else "json"
            assert bytes(connection.received) == told(codec, ending.reason)
        else:
            ending = finished(await serving)
            assert not requester.dialled
        assert (ending.outcome, ending.error_type) == (bad.outcome, bad.error_type)
        assert bad.reason in ending.reason
        assert ending.caller_told is bad.told
        assert ending.request_id in {"req-1", "named"}
        assert rig.counts() == Counts(errors={bad.error_type.value: 1}, first_responses=0)
        await assert_served(rig, requester)
    assert caplog.records == []  # its sender's fault, not ours


async def test_requester_that_refuses_the_connection_is_gone() -> None:
    rig = IngressRig(echo)
    async with ScriptedRequester() as requester:
        with NobodyListens() as nobody:
            ending = finished(await rig.start(request_payload(nobody.address, 1)))
        assert (ending.outcome, ending.error_type) == (
            Outcome.REQUESTER_GONE,
            ErrorType.RESPONSE_STREAM,
        )
        assert (ending.dials, ending.caller_told) == (1, False)
        assert rig.counts() == Counts(errors={"response_stream": 1}, first_responses=0)
        await assert_served(rig, requester)


async def test_requester_that_never_answers_is_unreachable() -> None:
    rig = IngressRig(echo, dial=DialSettings(attempts=1, connect_timeout=0.05))
    async with ScriptedRequester() as requester:
        with BlackHole() as hole:
            ending = finished(await rig.start(request_payload(hole.address, 1)))
        assert (ending.outcome, ending.error_type) == (
            Outcome.REQUESTER_UNREACHABLE,
            ErrorType.RESPONSE_STREAM,
        )
        assert "no answer" in ending.reason
        assert rig.counts() == Counts(errors={"response_stream": 1}, first_responses=0)
        await assert_served(rig, requester)


@pytest.mark.parametrize("place", [NobodyListens, BlackHole])
async def test_refusal_that_cannot_be_delivered_stays_what_it_was(
    place: type[NobodyListens] | type[BlackHole],
) -> None:
    rig = IngressRig(echo, dial=DialSettings(attempts=1, connect_timeout=0.05))
    with place() as nobody:
        address = nobody.address
        ending = finished(await rig.start(request_payload(address, body=b"{n:1}")))
    assert (ending.outcome, ending.error_type) == (Outcome.INVALID, ErrorType.DESERIALIZATION)
    assert (ending.caller, ending.caller_told) == (address, False)
    assert rig.counts() == Counts(errors={"deserialization": 1}, first_responses=0)


async def test_refusal_to_a_forbidden_address_is_not_dialled() -> None:
    rig = IngressRig(echo)
    ending = finished(await rig.start(request_payload("169.254.169.254:80", body=b"{n:1}")))
    assert (ending.outcome, ending.caller_told) == (Outcome.INVALID, False)


async def test_requester_that_leaves_while_it_is_refused_changes_nothing() -> None:
    rig = IngressRig(echo)
    async with ScriptedRequester() as requester:
        serving = rig.start(request_payload(requester.address, body=b"{n:1}"))
        (await requester.connection()).reset()
        ending = finished(await serving)
        assert ending.outcome is Outcome.INVALID
        await assert_served(rig, requester)
    assert rig.counts().cancellations == 0


class UntilKilled(Dialer):
    """Returns a stream only when its requester has killed it."""

    @override
    async def dial(
        self,
        address: Address,
        subject: str,
        *,
        total_timeout: float | None = None,
        offer: ResumeOffer | None = None,
    ) -> ResponseSender:
        sender = await super().dial(address, subject, total_timeout=total_timeout, offer=offer)
        killed = asyncio.Event()
        sender.on_event(lambda _: killed.set())
        await killed.wait()
        return sender


async def test_requester_that_kills_before_it_is_refused_changes_nothing() -> None:
    rig = IngressRig(echo, dialer_type=UntilKilled)
    async with ScriptedRequester() as requester:
        serving = rig.start(request_payload(requester.address, body=b"{n:1}"))
        connection = await requester.connection()
        await connection.send(KILL)
        ending = finished(await serving)
        assert await connection.frames() != []
    assert bytes(connection.received) == HANDSHAKE
    assert (ending.outcome, ending.caller_told) == (Outcome.INVALID, False)
    assert rig.counts() == Counts(errors={"deserialization": 1}, first_responses=0)


@pytest.mark.parametrize("long", ["x" * 50_000, "ü" * 50_000])
async def test_reason_does_not_quote_a_whole_payload(long: str) -> None:
    rig = IngressRig(echo)
    async with ScriptedRequester() as requester:
        info = tcp_info(requester.address, context=long)
        serving = rig.start(request_payload(requester.address, 1, info=info))
        connection = await requester.connection()
        await connection.frames()
        await connection.close()
        ending = finished(await serving)
    assert ending.outcome is Outcome.UNSUPPORTED
    assert len(ending.reason) < 600
    assert bytes(connection.received) == told("json", ending.reason)


async def test_request_that_does_not_fit_the_engines_annotation_is_invalid() -> None:
    class Prompt(pydantic.BaseModel):
        prompt: str

    async def typed(request: Prompt, context: Context) -> AsyncIterator[Any]:
        yield request.prompt

    rig = IngressRig(typed)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester, {"prompt": 3})
        connection = await requester.connection()
        await connection.frames()
        await connection.close()
        ending = finished(await serving)
    assert (ending.outcome, ending.error_type) == (Outcome.INVALID, ErrorType.DESERIALIZATION)
    assert ending.reason.startswith("request does not fit the engine: 1 validation error")
    assert bytes(connection.received) == told("json", ending.reason)
    assert rig.counts() == Counts(errors={"deserialization": 1}, first_responses=0)
