"""Whatever arrives becomes a request or a rejection, and the ingress says how it ended."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
import orjson
from hypothesis import example, given
from hypothesis import strategies as st
from typing_extensions import override

from dialback.errors import DialError
from dialback.ingress.request import ParsedRequest, Rejection, parse_unary
from dialback.metrics.names import ErrorType
from dialback.outcomes import Delivery, Outcome
from dialback.transport.address import Address
from dialback.transport.dial import Dialer
from dialback.transport.items import encode_value
from dialback.transport.messages import RequestControlMessage, ResumeOffer, encode_request_control
from dialback.transport.request_headers import (
    DEADLINE_HEADER,
    REQUEST_ID_HEADER,
    SEND_TIME_HEADER,
    START_BY_HEADER,
)
from dialback.transport.sender import ResponseSender
from dialback.transport.two_part import PREFIX, encode
from support.frames import control, tcp_info
from support.ingress_rig import IngressRig, finished
from support.strategies import control_messages, texts, values

ADDRESS = "10.0.0.7:4711"
HOME = Address("10.0.0.7", 4711)
MAX_REASON = 503
NAMED = (DEADLINE_HEADER, REQUEST_ID_HEADER, SEND_TIME_HEADER, START_BY_HEADER)

headers = st.dictionaries(
    st.sampled_from(NAMED) | texts,
    texts | st.integers(-(10**25), 10**25).map(str),
    max_size=4,
)

ENDLESS = encode(
    control(ADDRESS, frontend_send_ts_ns=1).replace(b'ns":1', b'ns":1' + b"0" * 400), b"1"
)
"""A send time that is no 64-bit number, nor a float."""

# --- payloads, from garbage to nearly good ------------------------------------------------

sizes = st.integers(0, 200) | st.integers(0, 2**64 - 1)
prefixed = st.tuples(sizes, sizes, st.binary()).map(lambda t: PREFIX.pack(*t[:2], 0) + t[2])
bodies = st.binary(max_size=40) | values.map(orjson.dumps) | values.map(msgspec.msgpack.encode)
keys = st.sampled_from(
    ["id", "request_type", "payload_codec", "connection_info", "metadata", "frontend_send_ts_ns"]
)
info_keys = st.sampled_from(["address", "subject", "context", "stream_type"])


@st.composite
def nearly_good(draw: st.DrawFn) -> bytes:
    """A request with a few of its values replaced by others, or cut off."""
    info = tcp_info(ADDRESS) | draw(st.dictionaries(info_keys, values, max_size=2))
    changes = draw(st.dictionaries(keys, values, max_size=2))
    payload = encode(control(ADDRESS, info=info, **changes), draw(bodies))
    return payload[: draw(st.integers(0, len(payload)))] if draw(st.booleans()) else payload


payloads = (
    st.binary(max_size=120)
    | prefixed
    | st.builds(encode, st.binary(max_size=60), bodies)
    | nearly_good()
)


@given(payload=payloads, named=headers)
def test_any_delivery_is_a_request_or_a_rejection(payload: bytes, named: Mapping[str, str]) -> None:
    delivery = Delivery(payload=payload, headers=named, sequence=7, published_ns=99)
    result = parse_unary(delivery)
    if isinstance(result, ParsedRequest):
        assert 0 < result.call_home.address.port < 65536
        return
    assert result.outcome in {Outcome.INVALID, Outcome.UNSUPPORTED}
    assert result.error_type in {
        ErrorType.INVALID_MESSAGE,
        ErrorType.DESERIALIZATION,
        ErrorType.RESPONSE_STREAM,
    }
    assert result.request_id
    assert 0 < len(result.reason) <= MAX_REASON


@given(control_messages(ADDRESS), values, headers)
def test_any_good_request_is_read_as_it_was_written(
    sent: RequestControlMessage, value: Any, named: Mapping[str, str]
) -> None:
    payload = encode(encode_request_control(sent), encode_value(value, sent.codec))
    result = parse_unary(Delivery(payload=payload, headers=named))
    assert isinstance(result, ParsedRequest)
    assert (result.request_id, result.value, result.metadata) == (sent.id, value, sent.metadata)
    assert (result.call_home.address, result.call_home.codec) == (HOME, sent.codec)
    if sent.frontend_send_ts_ns:
        assert result.sent_ns == sent.frontend_send_ts_ns


@given(control_messages(ADDRESS), values)
def test_a_good_request_cut_anywhere_is_invalid_and_answered_once_its_header_is_there(
    sent: RequestControlMessage, value: Any
) -> None:
    header = encode_request_control(sent)
    payload = encode(header, encode_value(value, sent.codec))
    for length in range(len(payload)):
        result = parse_unary(Delivery(payload=payload[:length]))
        assert isinstance(result, Rejection)
        assert result.outcome is Outcome.INVALID
        assert result.error_type is ErrorType.INVALID_MESSAGE
        readable = length >= PREFIX.size + len(header)
        assert (result.call_home is not None) == readable
        assert not readable or result.request_id == (sent.id or "seq-0-0")


class Nobody(Dialer):
    """Every requester is gone."""

    @override
    async def dial(
        self,
        address: Address,
        subject: str,
        *,
        total_timeout: float | None = None,
        offer: ResumeOffer | None = None,
    ) -> ResponseSender:
        raise DialError("nobody listens", gone=True, attempts=1)


async def echo(request: Any) -> AsyncIterator[Any]:
    yield request


@given(payload=payloads, named=headers)
@example(payload=ENDLESS, named={})
async def test_any_delivery_ends_with_an_outcome_and_is_counted(
    payload: bytes, named: Mapping[str, str]
) -> None:
    rig = IngressRig(echo, dialer_type=Nobody)
    ending = finished(await rig.ingress.handle(Delivery(payload=payload, headers=named)))
    assert ending.outcome in {
        Outcome.INVALID,
        Outcome.UNSUPPORTED,
        Outcome.EXPIRED,
        Outcome.REQUESTER_GONE,
    }, "anything else is a fault of our own"
    counts = rig.counts()
    assert (counts.requests, counts.inflight, counts.durations) == (1, 0, 1)
    assert sum(counts.errors.values()) == (ending.outcome is not Outcome.EXPIRED)
    assert rig.sample("dynamo_component_request_bytes_total") == len(payload)
