"""Strategies for property tests, and their settings: no timed assertions, machines are shared."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from dialback.transport.messages import (
    PayloadCodec,
    RequestControlMessage,
    RequestType,
    ResponseType,
    TcpConnectionInfo,
    encode_tcp_info,
)
from dialback.transport.two_part import TwoPartMessage

settings.register_profile(
    "dialback",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("dialback")

codecs = st.sampled_from(PayloadCodec)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
"""What both codecs can carry: JSON values, integers of 64 bits."""

parts = st.binary(max_size=60)
messages = st.builds(TwoPartMessage, parts, parts)
hosts = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True) | st.ip_addresses().map(str)
ports = st.integers(1, 65535)


@st.composite
def control_messages(draw: st.DrawFn, address: str) -> RequestControlMessage:
    """Control messages of requests that can be served."""
    request_id = draw(texts)
    info = TcpConnectionInfo(
        address=address, subject=draw(texts), context=request_id, stream_type="response"
    )
    return RequestControlMessage(
        id=request_id,
        request_type=draw(st.sampled_from(RequestType)),
        response_type=draw(st.sampled_from(ResponseType)),
        payload_codec=draw(codecs),
        connection_info=encode_tcp_info(info),
        metadata=draw(st.dictionaries(texts, texts, max_size=3)),
        frontend_send_ts_ns=draw(st.none() | st.integers(0, 2**63 - 1)),
    )


@st.composite
def splits(draw: st.DrawFn, stream: bytes) -> Sequence[bytes]:
    """The stream in pieces, empty ones among them."""
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    bounds = [0, *cuts, len(stream)]
    return [stream[a:b] for a, b in pairwise(bounds)]
