from typing import Any

import pytest
from xxhash import xxh3_64

from dialback.errors import ProtocolError, Unknown
from dialback.transport.dynamo_errors import backend_error, interrupted_error, read_error
from dialback.transport.items import encode_error_item, encode_item
from dialback.transport.messages import (
    CallHomeHandshake,
    PayloadCodec,
    ResumeAnswer,
    ResumeOffer,
    StreamType,
    TcpConnectionInfo,
    decode_handshake,
    encode_document,
    encode_tcp_info,
)
from dialback.transport.response_stream import WorkerEnd
from dialback.transport.resume_frames import (
    answer_frame,
    is_answer,
    read_answer,
    read_superseded,
    superseded_frame,
)
from dialback.transport.tally import Tally
from dialback.transport.two_part import TwoPartMessage, decode, encode
from support.resumable_worker import offering

CODECS = list(PayloadCodec)


def _frame(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "big") + len(data).to_bytes(8, "big") + bytes(8) + header + data


# --- golden bytes -------------------------------------------------------------------------


def test_without_the_announcement_connection_info_and_handshake_are_dynamos_bytes() -> None:
    info = encode_tcp_info(TcpConnectionInfo("h:1", "s", "r", "response", resumable=0))
    assert info.info == '{"address":"h:1","subject":"s","context":"r","stream_type":"response"}'
    handshake = CallHomeHandshake("s", StreamType.RESPONSE)
    assert encode_document(handshake) == b'{"subject":"s","stream_type":"response"}'


def test_the_announcement_is_one_more_key_at_the_end() -> None:
    info = encode_tcp_info(TcpConnectionInfo("h:1", "s", "r", "response", resumable=1))
    assert info.info == (
        '{"address":"h:1","subject":"s","context":"r","stream_type":"response","resumable":1}'
    )
    handshake = CallHomeHandshake("s", StreamType.RESPONSE, resume=1, delivery=3, epoch=0)
    assert encode_document(handshake) == (
        b'{"subject":"s","stream_type":"response","resume":1,"delivery":3,"epoch":0}'
    )


def test_a_fresh_handshake_has_one_more_key_and_is_read_as_it_was_written() -> None:
    offer = ResumeOffer(1, 5, unable=True, fresh=True)
    header = (
        b'{"subject":"s","stream_type":"response","resume":1,"delivery":1,"epoch":5,"unable":1'
        b',"fresh":1}'
    )
    assert WorkerEnd().handshake("s", offer) == _frame(header)
    assert decode_handshake(header).offer == offer


@pytest.mark.parametrize("fresh", [b"", b',"fresh":0', b',"fresh":2'])
def test_only_a_1_is_fresh(fresh: bytes) -> None:
    header = b'{"subject":"s","stream_type":"response","resume":1,"delivery":1,"epoch":5%b}' % fresh
    assert decode_handshake(header).offer == ResumeOffer(1, 5, fresh=False)


def test_an_answer_says_what_is_there_and_leaves_out_what_is_not() -> None:
    nothing = answer_frame(ResumeAnswer(resume=0, fruitless=2), None, PayloadCodec.JSON)
    assert nothing == _frame(b'{"resume":0,"fruitless":2}')
    some = ResumeAnswer(resume=2, fruitless=0, digest="00ff", waited_ms=15)
    assert answer_frame(some, None, PayloadCodec.JSON) == _frame(
        b'{"resume":2,"fruitless":0,"digest":"00ff","waited_ms":15}'
    )


@pytest.mark.parametrize(
    ("codec", "data"),
    [(PayloadCodec.JSON, b'[{"i":0},"b"]'), (PayloadCodec.MSGPACK, b"\x92\x81\xa1i\x00\xa1b")],
)
def test_the_history_is_the_values_as_they_came(codec: PayloadCodec, data: bytes) -> None:
    bodies = [encode_item(value, codec) for value in ({"i": 0}, "b")]
    frame = answer_frame(ResumeAnswer(resume=2, fruitless=0), bodies, codec)
    assert frame == _frame(b'{"resume":2,"fruitless":0}', data)


def test_superseded_is_a_header_only_frame() -> None:
    assert superseded_frame(7) == _frame(b'{"superseded":7}')


# --- read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("history", [True, False])
def test_an_answer_is_read_as_it_was_written(codec: PayloadCodec, history: bool) -> None:
    values: list[Any] = [{"i": 1}, None, "grüße", [1.5]]
    bodies = [encode_item(value, codec) for value in values]
    answer = ResumeAnswer(
        resume=4,
        fruitless=1,
        delivered=values if history else None,
        digest="abc",
        waited_ms=9,
    )
    message = decode(answer_frame(answer, bodies if history else None, codec))
    assert is_answer(message)
    assert read_answer(message, codec) == answer


@pytest.mark.parametrize("codec", CODECS)
def test_an_error_item_and_one_that_cannot_be_read_are_nulls_in_the_history(
    codec: PayloadCodec,
) -> None:
    bodies = [
        encode_item(1, codec),
        encode_error_item(backend_error(Unknown, "boom"), codec),
        b"garbage",
    ]
    message = decode(answer_frame(ResumeAnswer(resume=3, fruitless=0), bodies, codec))
    assert read_answer(message, codec).delivered == [1, None, None]


def test_an_empty_history_is_an_empty_list() -> None:
    message = decode(answer_frame(ResumeAnswer(resume=0, fruitless=0), [], PayloadCodec.JSON))
    assert read_answer(message, PayloadCodec.JSON).delivered == []


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b'"stop"',
        b"{}",
        b'{"resume":1}',
        b'{"fruitless":1}',
        b'{"resume":-1,"fruitless":0}',
        b'{"resume":"1","fruitless":0}',
        b'{"resume":1,"fruitless":0,"digest":"xyz"}',
        b'{"resume":1,"fruitless":0,"digest":"00000000000000000"}',
        b'{"resume":1,"fruitless":0,"waited_ms":-1}',
        b'{"superseded":1}',
        b'"\xff"',
        b"[" * 5000,
    ],
)
def test_what_is_no_answer_is_told_apart(header: bytes) -> None:
    message = TwoPartMessage(header)
    assert not is_answer(message)
    with pytest.raises(ProtocolError, match="not an answer"):
        read_answer(message, PayloadCodec.JSON)


def test_unknown_keys_of_an_answer_are_skipped() -> None:
    message = TwoPartMessage(b'{"resume":1,"later":{"x":1},"fruitless":0}')
    assert read_answer(message, PayloadCodec.JSON) == ResumeAnswer(resume=1, fruitless=0)


@pytest.mark.parametrize("data", [b"[1]", b"[1,2,3]", b"{}", b"7", b"not json"])
def test_a_history_of_another_length_or_kind_is_refused(data: bytes) -> None:
    message = TwoPartMessage(b'{"resume":2,"fruitless":0}', data)
    with pytest.raises(ProtocolError):
        read_answer(message, PayloadCodec.JSON)


@pytest.mark.parametrize(
    "message",
    [
        TwoPartMessage(b'{"superseded":7}', b"x"),
        TwoPartMessage(b'{"superseded":"7"}'),
        TwoPartMessage(b'{"superseded":-7}'),
        TwoPartMessage(b'{"resume":7,"fruitless":0}'),
        TwoPartMessage(b"\xff"),
        TwoPartMessage(),
    ],
)
def test_what_does_not_say_superseded_is_told_apart(message: TwoPartMessage) -> None:
    assert read_superseded(message) is None


def test_superseded_names_the_delivery() -> None:
    assert read_superseded(decode(superseded_frame(12))) == 12


def test_a_handshake_offers_only_if_it_says_so() -> None:
    assert decode_handshake(decode(offering("s", 3, 9)).header).offer == ResumeOffer(3, 9)
    plain = b'{"subject":"s","stream_type":"response"}'
    assert decode_handshake(plain).offer is None
    assert decode_handshake(plain[:-1] + b',"resume":0,"delivery":1}').offer is None
    assert decode_handshake(plain[:-1] + b',"resume":1}').offer == ResumeOffer(0, 0)


def test_an_interruption_is_an_error_item_that_keeps_its_reason() -> None:
    error = read_error(interrupted_error("nobody can go on"))
    assert (error.message, error.reason) == ("nobody can go on", "dialback.stream_interrupted")


# --- the tally ----------------------------------------------------------------------------


def _told(tally: Tally) -> ResumeAnswer:
    return read_answer(decode(tally.answer(PayloadCodec.JSON)), PayloadCodec.JSON)


def test_the_tally_has_number_and_digest_of_the_bodies() -> None:
    tally = Tally(resumable=True)
    assert (_told(tally).resume, _told(tally).digest) == (0, "")
    tally.add([b"one"])
    tally.add([b"two"])
    assert _told(tally).resume == 2
    assert _told(tally).digest == xxh3_64(b"onetwo").hexdigest()
    assert _told(tally).delivered is None


def test_workers_without_an_item_are_counted_until_one_brings_one() -> None:
    tally = Tally(resumable=True)
    for expected in (1, 2):
        tally.worker_ended(blameless=False)
        assert tally.fruitless == expected
    tally.worker_ended(blameless=True)
    assert tally.fruitless == 2, "a hand-over is no failure"
    tally.add([b"x"])
    assert tally.fruitless == 0
    tally.worker_ended(blameless=False)
    assert tally.fruitless == 0, "it brought an item"
    tally.worker_ended(blameless=False)
    assert tally.fruitless == 1


def test_a_history_over_its_limit_is_dropped_for_good() -> None:
    bodies = [encode_item(value, PayloadCodec.JSON) for value in (1, 2, 3)]
    tally = Tally(resumable=True, history_bytes=2 * len(bodies[0]))
    tally.add([bodies[0]])
    tally.add([bodies[1]])
    assert _told(tally).delivered == [1, 2]
    tally.add([bodies[2]])
    tally.add([b""])
    assert _told(tally).delivered is None
    assert _told(tally).resume == 4


def test_frames_are_two_part_messages() -> None:
    assert decode(superseded_frame(1)) == decode(encode(b'{"superseded":1}'))
