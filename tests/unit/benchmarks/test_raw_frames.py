import pytest

from benchmarks.peers.raw_frames import HEAD, STAMPED, body_size, frame, json_frame, json_item
from dialback.transport.items import encode_item, item_framer
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


def test_a_json_frame_is_dialbacks_and_read_back() -> None:
    item = {"i": 7, "t": 1}
    made = json_frame(item)
    ours, size = item_framer(PayloadCodec.JSON)(item)
    assert made == ours
    assert size == len(made) - HEAD.size
    assert json_item(b"x" + made, 1, 1 + len(made)) == item
