import pytest

from benchmarks.peers.raw_frames import HEAD, STAMPED, body_size, frame
from dialback.transport.items import encode_item
from dialback.transport.messages import PayloadCodec


@pytest.mark.parametrize("size", [0, 1000])
def test_a_body_is_as_large_as_dialbacks(size: int) -> None:
    item = {"i": 123, "t": 123_456_789_012_345} | ({"text": "x" * size} if size else {})
    ours = encode_item(item, PayloadCodec.JSON)
    assert body_size({"size": size}) == len(ours)


def test_a_frame_has_its_size_in_its_head_and_its_moment_in_its_body() -> None:
    whole = frame(100, made=7)
    assert len(whole) == HEAD.size + 100
    assert STAMPED.unpack_from(whole) == (0, 100, 0, 7)
