import pytest

from dialback.errors import (
    ChecksumError,
    FrameTooLargeError,
    ProtocolError,
    TruncatedFrameError,
)
from dialback.transport.two_part import (
    MAX_REQUEST_HEADER_BYTES,
    PREFIX,
    FrameLimits,
    TwoPartDecoder,
    TwoPartMessage,
    data_prefix,
    decode,
    encode,
    salvage_header,
)
from support.captures import CAPTURES, Capture, capture

SENTINEL = bytes.fromhex("000000000000000a000000000000000000000000000000002273656e74696e656c22")
ITEM_BODY = b'{"data":{"data":{"i":0}},"complete_final":false}'
NORMAL = capture("1.6.1", "normal")
ALL_ONES = b"\xff" * 24


def _next_after(decoder: TwoPartDecoder, *chunks: bytes) -> list[TwoPartMessage]:
    messages: list[TwoPartMessage] = []
    for chunk in chunks:
        decoder.receive_data(chunk)
        while (message := decoder.next_message()) is not None:
            messages.append(message)
    return messages


# --- encoding -----------------------------------------------------------------------------


def test_a_frame_is_three_big_endian_numbers_then_header_then_data() -> None:
    assert encode(b'"sentinel"') == SENTINEL
    assert encode(b"ab", b"c") == bytes.fromhex(
        "000000000000000200000000000000010000000000000000"
    ) + (b"abc")


def test_an_items_prefix_is_written_without_its_data() -> None:
    assert data_prefix(len(ITEM_BODY)) + ITEM_BODY == encode(b"", ITEM_BODY)


@pytest.mark.parametrize(
    ("header", "data", "checksum"),
    [
        (b"", b"", 0x2D06800538D394C2),
        (b'"sentinel"', b"", 0x3993296F71E74889),
        (b"", ITEM_BODY, 0x79AC8E0DFC065E69),
    ],
)
def test_a_checksum_is_written_on_demand_as_debug_builds_do(
    header: bytes, data: bytes, checksum: int
) -> None:
    assert PREFIX.unpack_from(encode(header, data, checksum=True))[2] == checksum
    assert PREFIX.unpack_from(encode(header, data))[2] == 0


@pytest.mark.parametrize(
    ("header", "data", "kind"),
    [
        (b"h", b"", "header-only"),
        (b"", b"d", "data-only"),
        (b"h", b"d", "header-and-data"),
        (b"", b"", "empty"),
    ],
)
def test_the_kind_tells_which_parts_are_there(header: bytes, data: bytes, kind: str) -> None:
    assert decode(encode(header, data)).kind == kind


# --- decoding a stream --------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(len(NORMAL.worker_bytes) + 1))
def test_a_captured_stream_decodes_the_same_at_any_cut(cut: int) -> None:
    stream = NORMAL.worker_bytes
    assert _next_after(TwoPartDecoder(), stream[:cut], stream[cut:]) == NORMAL.frames


@pytest.mark.parametrize("captured", CAPTURES, ids=str)
def test_every_captured_stream_and_payload_decodes_the_same_at_any_cut(captured: Capture) -> None:
    for stream in (captured.payload, captured.worker_bytes, captured.requester_bytes):
        expected = _next_after(TwoPartDecoder(), stream)
        for cut in range(len(stream)):
            assert _next_after(TwoPartDecoder(), stream[:cut], stream[cut:]) == expected


@pytest.mark.parametrize("captured", CAPTURES, ids=str)
def test_every_captured_stream_decodes_byte_by_byte(captured: Capture) -> None:
    decoder = TwoPartDecoder()
    chunks = [bytes([byte]) for byte in captured.worker_bytes]
    assert _next_after(decoder, *chunks) == captured.frames
    assert decoder.buffered == 0


@pytest.mark.parametrize("captured", CAPTURES, ids=str)
def test_decoded_and_encoded_again_a_captured_stream_is_the_same_bytes(captured: Capture) -> None:
    frames = [encode(frame.header, frame.data) for frame in captured.frames]
    assert b"".join(frames) == captured.worker_bytes
    message = decode(captured.payload)
    assert encode(message.header, message.data) == captured.payload


def test_buffered_counts_what_was_not_returned_yet() -> None:
    decoder = TwoPartDecoder()
    decoder.receive_data(SENTINEL + SENTINEL[:5])
    assert decoder.buffered == len(SENTINEL) + 5
    assert decoder.next_message() == TwoPartMessage(b'"sentinel"')
    assert decoder.buffered == 5
    assert decoder.next_message() is None
    decoder.receive_data(SENTINEL[5:])
    assert decoder.next_message() == TwoPartMessage(b'"sentinel"')
    assert decoder.buffered == 0


# --- limits -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header_size", "data_size", "size", "limit"), [(11, 0, 11, 10), (0, 101, 101, 100)]
)
def test_a_limit_is_enforced_from_the_prefix_before_any_content(
    header_size: int, data_size: int, size: int, limit: int
) -> None:
    decoder = TwoPartDecoder(FrameLimits(header=10, data=100))
    decoder.receive_data(PREFIX.pack(header_size, data_size, 0))
    with pytest.raises(FrameTooLargeError) as caught:
        decoder.next_message()
    assert (caught.value.size, caught.value.limit) == (size, limit)
    assert decoder.buffered == 0


def test_a_part_as_large_as_the_limit_is_accepted() -> None:
    decoder = TwoPartDecoder(FrameLimits(header=10, data=100))
    decoder.receive_data(encode(b"h" * 10, b"d" * 100))
    assert decoder.next_message() == TwoPartMessage(b"h" * 10, b"d" * 100)


def test_an_all_ones_prefix_is_too_large_and_does_not_overflow() -> None:
    decoder = TwoPartDecoder()
    decoder.receive_data(ALL_ONES)
    with pytest.raises(FrameTooLargeError, match="18446744073709551615 bytes"):
        decoder.next_message()
    with pytest.raises(FrameTooLargeError):
        decode(ALL_ONES)


def test_an_error_is_final_even_when_good_bytes_follow() -> None:
    decoder = TwoPartDecoder()
    decoder.receive_data(ALL_ONES)
    with pytest.raises(FrameTooLargeError) as first:
        decoder.next_message()
    decoder.receive_data(SENTINEL)
    with pytest.raises(ProtocolError) as second:
        decoder.next_message()
    assert second.value is first.value


# --- checksums ----------------------------------------------------------------------------

WRONG_CHECKSUM = PREFIX.pack(1, 1, 0xDEADBEEF) + b"hd"


def test_a_wrong_checksum_is_accepted_as_releases_do() -> None:
    assert decode(WRONG_CHECKSUM) == TwoPartMessage(b"h", b"d")


def test_a_wrong_checksum_is_refused_when_verification_was_asked_for() -> None:
    decoder = TwoPartDecoder(verify_checksum=True)
    decoder.receive_data(WRONG_CHECKSUM + SENTINEL)
    with pytest.raises(ChecksumError, match="announced 00000000deadbeef") as caught:
        decoder.next_message()
    assert caught.value.announced == 0xDEADBEEF
    with pytest.raises(ChecksumError):
        decoder.next_message()


@pytest.mark.parametrize("checksum", [False, True])
def test_verification_accepts_the_right_checksum_and_zero(checksum: bool) -> None:
    decoder = TwoPartDecoder(verify_checksum=True)
    decoder.receive_data(encode(b"h", b"d", checksum=checksum))
    assert decoder.next_message() == TwoPartMessage(b"h", b"d")


# --- decoding a payload -------------------------------------------------------------------


def test_bytes_after_a_payloads_message_are_ignored() -> None:
    assert decode(NORMAL.payload + b"rubbish") == decode(NORMAL.payload)


@pytest.mark.parametrize("length", range(len(NORMAL.payload)))
def test_a_payload_cut_anywhere_is_truncated(length: int) -> None:
    with pytest.raises(TruncatedFrameError, match="Invalid message: No message decoded") as caught:
        decode(NORMAL.payload[:length])
    assert caught.value.received == length
    assert caught.value.expected == (len(NORMAL.payload) if length >= PREFIX.size else PREFIX.size)


def test_a_requests_header_may_be_128_kib_and_no_more() -> None:
    assert len(decode(encode(b"h" * MAX_REQUEST_HEADER_BYTES, b"d")).header) == 131072
    with pytest.raises(FrameTooLargeError):
        decode(encode(b"h" * (MAX_REQUEST_HEADER_BYTES + 1), b"d"))


def test_a_payloads_limits_can_be_chosen() -> None:
    with pytest.raises(FrameTooLargeError):
        decode(encode(b"", b"ddd"), limits=FrameLimits(data=2))


# --- what can be saved --------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        PREFIX.pack(6, 100, 0) + b"header",
        PREFIX.pack(6, 100, 0) + b"header" + b"d" * 99,
        PREFIX.pack(6, 2**64 - 1, 0) + b"header",
        encode(b"header"),
    ],
)
def test_the_header_is_saved_when_the_data_is_cut_off_or_too_large(payload: bytes) -> None:
    assert salvage_header(payload) == b"header"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"abc",
        ALL_ONES,
        encode(b"", b"data"),
        PREFIX.pack(6, 0, 0) + b"heade",
        encode(b"h" * (MAX_REQUEST_HEADER_BYTES + 1)),
    ],
)
def test_no_header_is_saved_that_is_missing_cut_off_or_too_large(payload: bytes) -> None:
    assert salvage_header(payload) is None


def test_limits_can_be_raised_between_two_frames() -> None:
    decoder = TwoPartDecoder(FrameLimits(header=8, data=4))
    decoder.receive_data(encode(b"h", b"1234") + encode(b"", b"12345"))
    assert decoder.next_message() == TwoPartMessage(b"h", b"1234")
    decoder.allow(FrameLimits(header=8, data=5))
    assert decoder.next_message() == TwoPartMessage(b"", b"12345")


def test_after_an_error_nothing_more_is_stored() -> None:
    decoder = TwoPartDecoder(FrameLimits(header=1, data=1))
    decoder.receive_data(b"\xff" * 24)
    with pytest.raises(FrameTooLargeError):
        decoder.next_message()
    decoder.receive_data(b"x" * 1000)
    assert decoder.buffered == 0


# --- data-only messages, many at a time ---------------------------------------------------


def test_data_parts_come_up_to_the_next_message_of_another_kind() -> None:
    decoder = TwoPartDecoder()
    decoder.receive_data(encode(b"", b"one") + encode(b"", b"two") + SENTINEL + encode(b"", b"3"))
    assert decoder.next_data_parts() == [b"one", b"two"]
    assert decoder.next_data_parts() == []
    assert decoder.next_message() == TwoPartMessage(b'"sentinel"')
    assert decoder.next_data_parts() == [b"3"]
    assert decoder.buffered == 0


@pytest.mark.parametrize("cut", range(2 * len(encode(b"", b"item")) + 1))
def test_parts_and_messages_are_all_there_at_any_cut(cut: int) -> None:
    stream = encode(b"", b"item") * 2
    decoder = TwoPartDecoder()
    found: list[bytes] = []
    for piece in (stream[:cut], stream[cut:]):
        decoder.receive_data(piece)
        found += decoder.next_data_parts()
        while (message := decoder.next_message()) is not None:
            found.append(message.data)
    assert found == [b"item", b"item"]
    assert decoder.buffered == 0


def test_a_part_over_the_limit_is_left_to_fail_as_a_message() -> None:
    decoder = TwoPartDecoder(FrameLimits(data=4))
    decoder.receive_data(encode(b"", b"1234") + encode(b"", b"12345"))
    assert decoder.next_data_parts() == [b"1234"]
    with pytest.raises(FrameTooLargeError):
        decoder.next_message()
    assert decoder.next_data_parts() == []


def test_an_empty_message_is_no_data_part() -> None:
    decoder = TwoPartDecoder()
    decoder.receive_data(encode() + encode(b"", b"x"))
    assert decoder.next_data_parts() == []
    assert decoder.next_message() == TwoPartMessage()
    assert decoder.next_data_parts() == [b"x"]


def test_checksums_that_are_to_be_verified_are_never_skipped() -> None:
    decoder = TwoPartDecoder(verify_checksum=True)
    broken = PREFIX.pack(0, 4, 1) + b"item"
    decoder.receive_data(broken)
    assert decoder.next_data_parts() == []
    with pytest.raises(ChecksumError):
        decoder.next_message()
