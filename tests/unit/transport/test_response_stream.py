import itertools

import pytest

from dialback.errors import ProtocolError
from dialback.transport.messages import ResponseStreamPrologue, ResumeOffer, StreamType
from dialback.transport.response_stream import (
    KILL_FRAME,
    REQUESTER_TABLE,
    SENTINEL_FRAME,
    STOP_FRAME,
    WORKER_TABLE,
    EndState,
    RequesterEnd,
    RequesterEvent,
    RequesterState,
    WorkerEnd,
    WorkerEvent,
    WorkerState,
    end_state,
)
from dialback.transport.two_part import TwoPartMessage, encode
from support.captures import CAPTURES, RELEASES, Capture, capture

W, R = WorkerState, RequesterState
STOP, KILL = TwoPartMessage(b'"stop"'), TwoPartMessage(b'"kill"')
SENTINEL = TwoPartMessage(b'"sentinel"')
HANDSHAKE = TwoPartMessage(b'{"subject":"s","stream_type":"response"}')
PROLOGUE, REFUSAL = TwoPartMessage(b'{"error":null}'), TwoPartMessage(b'{"error":"no"}')
ITEM = TwoPartMessage(b"", b'{"data":{"data":1},"complete_final":false}')
EMPTY = TwoPartMessage()
ANSWER = TwoPartMessage(b'{"resume":2,"fruitless":0}')

# One row a state: what each event leads to, in the order of WorkerEvent; None is not possible.
# handshake, offer, fresh | prologue, refusal, item, final, sentinel
# | stop, kill, violation | answer, superseded, release, lost
WORKER_ROWS: dict[WorkerState, tuple[WorkerState | None, ...]] = {
    W.DIALLED: (
        *(W.OPEN, W.OFFERED, W.OPEN),
        *(None,) * 5,
        *(W.DIALLED, W.ABORTED, W.ABORTED),
        *(None, None, None, W.ABORTED),
    ),
    W.OFFERED: (
        *(None,) * 8,
        *(W.OFFERED, W.ABORTED, W.ABORTED),
        *(W.OPEN, W.ABORTED, None, W.ABORTED),
    ),
    W.OPEN: (
        *(None,) * 3,
        *(W.STREAMING, W.FINISHING, None, None, None),
        *(W.OPEN, W.ABORTED, W.ABORTED),
        *(W.ABORTED, W.ABORTED, None, W.ABORTED),
    ),
    W.STREAMING: (
        *(None,) * 3,
        *(None, None, W.STREAMING, W.FINISHING, W.LINGER),
        *(W.STOPPING, W.ABORTED, W.ABORTED),
        *(W.ABORTED, W.ABORTED, None, W.ABORTED),
    ),
    W.STOPPING: (
        *(None,) * 3,
        *(None, None, W.STOPPING, W.FINISHING, W.LINGER),
        *(W.STOPPING, W.ABORTED, W.ABORTED),
        *(W.ABORTED, W.ABORTED, None, W.ABORTED),
    ),
    W.FINISHING: (
        *(None,) * 3,
        *(None, None, None, None, W.LINGER),
        *(W.FINISHING, W.ABORTED, W.ABORTED),
        *(W.ABORTED, W.ABORTED, W.LINGER, W.ABORTED),
    ),
    W.LINGER: (*(None,) * 8, *(W.LINGER,) * 3, *(W.ABORTED, W.ABORTED, W.LINGER, W.LINGER)),
    W.ABORTED: (*(None,) * 8, *(W.ABORTED,) * 5, None, W.ABORTED),
}
# handshake, prologue, refusal, item, final, sentinel, lost
REQUESTER_ROWS: dict[RequesterState, tuple[RequesterState | None, ...]] = {
    R.ACCEPTED: (R.OPEN, None, None, None, None, None, R.ENDED),
    R.OPEN: (None, R.STREAMING, R.ENDED, None, None, None, R.ENDED),
    R.STREAMING: (None, None, None, R.STREAMING, R.FINAL_SEEN, R.ENDED, R.ENDED),
    R.FINAL_SEEN: (None, None, None, None, None, R.ENDED, R.ENDED),
    R.ENDED: (None, None, None, None, None, R.ENDED, R.ENDED),
}
WORKER_PAIRS = [
    (state, event, following)
    for state, row in WORKER_ROWS.items()
    for event, following in zip(WorkerEvent, row, strict=True)
]
REQUESTER_PAIRS = [
    (state, event, following)
    for state, row in REQUESTER_ROWS.items()
    for event, following in zip(RequesterEvent, row, strict=True)
]


def _worker_in(state: WorkerState) -> WorkerEnd:
    end = WorkerEnd()
    end.state = state
    return end


def _requester_in(state: RequesterState) -> RequesterEnd:
    end = RequesterEnd()
    end.state = state
    return end


# --- the tables ---------------------------------------------------------------------------


def test_every_pair_of_both_tables_is_shown_here() -> None:
    assert len(WORKER_PAIRS) == len(list(itertools.product(WorkerState, WorkerEvent)))
    assert len(REQUESTER_PAIRS) == len(list(itertools.product(RequesterState, RequesterEvent)))
    assert len(WORKER_TABLE) == sum(following is not None for _, _, following in WORKER_PAIRS)
    assert len(REQUESTER_TABLE) == sum(following is not None for _, _, following in REQUESTER_PAIRS)


@pytest.mark.parametrize(("state", "event", "following"), WORKER_PAIRS, ids=str)
def test_the_workers_end_goes_where_its_table_says_or_refuses(
    state: WorkerState, event: WorkerEvent, following: WorkerState | None
) -> None:
    end = _worker_in(state)
    if following is None:
        with pytest.raises(ProtocolError, match=f"cannot {event.value} while {state.value}"):
            end.advance(event)
        following = state
    else:
        end.advance(event)
    assert end.state is following


@pytest.mark.parametrize(("state", "event", "following"), REQUESTER_PAIRS, ids=str)
def test_the_requesters_end_goes_where_its_table_says_or_refuses(
    state: RequesterState, event: RequesterEvent, following: RequesterState | None
) -> None:
    end = _requester_in(state)
    if following is None:
        with pytest.raises(ProtocolError, match=f"{event.value} while {state.value}"):
            end.advance(event)
        following = state
    else:
        end.advance(event)
    assert end.state is following


# --- what the worker writes ---------------------------------------------------------------


@pytest.mark.parametrize("captured", CAPTURES, ids=str)
def test_the_worker_writes_the_frames_that_a_real_worker_writes(captured: Capture) -> None:
    handshake = captured.frames[0].header.decode()
    subject = handshake.split('"')[3]
    end = WorkerEnd()
    written = end.handshake(subject) + end.prologue()
    assert captured.worker_bytes.startswith(written)
    if captured.scenario != "stop":
        end.advance(WorkerEvent.FINAL)
        end.advance(WorkerEvent.SENTINEL)
        assert captured.worker_bytes.endswith(SENTINEL_FRAME)
        assert end.state is W.LINGER


@pytest.mark.parametrize("release", RELEASES)
def test_the_stop_frame_is_what_a_real_requester_writes(release: str) -> None:
    assert capture(release, "stop").requester_bytes == STOP_FRAME


def test_the_control_frames_are_the_protocols_bytes() -> None:
    head = "0000000000000000" * 2
    assert STOP_FRAME.hex() == "0000000000000006" + head + "2273746f7022"
    assert KILL_FRAME.hex() == "0000000000000006" + head + "226b696c6c22"
    assert SENTINEL_FRAME.hex() == "000000000000000a" + head + "2273656e74696e656c22"


def test_after_an_error_prologue_only_the_sentinel_may_follow() -> None:
    end = WorkerEnd()
    end.handshake("s")
    assert end.prologue(ResponseStreamPrologue("no")) == encode(b'{"error":"no"}')
    for event in (WorkerEvent.ITEM, WorkerEvent.FINAL, WorkerEvent.PROLOGUE):
        with pytest.raises(ProtocolError):
            end.advance(event)
    end.advance(WorkerEvent.SENTINEL)
    assert end.state is W.LINGER


# --- what the worker hears ----------------------------------------------------------------


def test_a_stop_lets_the_worker_flush_items_and_write_its_final() -> None:
    end = _worker_in(W.STREAMING)
    assert end.receive(STOP) is WorkerEvent.STOP
    end.advance(WorkerEvent.ITEM)
    end.advance(WorkerEvent.FINAL)
    end.advance(WorkerEvent.SENTINEL)
    assert end.state is W.LINGER


def test_a_kill_after_a_stop_is_the_stronger_and_stays() -> None:
    end = _worker_in(W.STREAMING)
    assert end.receive(STOP) is WorkerEvent.STOP
    assert end.receive(KILL) is WorkerEvent.KILL
    assert end.receive(STOP) is WorkerEvent.STOP
    assert end.state is W.ABORTED


def test_a_stop_between_handshake_and_prologue_is_heard() -> None:
    end = WorkerEnd()
    end.handshake("s")
    assert end.receive(STOP) is WorkerEvent.STOP
    assert end.prologue() == encode(b'{"error":null}')
    assert end.receive(STOP) is WorkerEvent.STOP
    assert end.state is W.STOPPING


@pytest.mark.parametrize("header", [b' "stop"', b'"\\u0073top"', b'"stop"\n'])
def test_a_control_frame_may_be_written_with_blanks_and_escapes(header: bytes) -> None:
    assert _worker_in(W.STREAMING).receive(TwoPartMessage(header)) is WorkerEvent.STOP


@pytest.mark.parametrize(
    "message",
    [
        SENTINEL,
        TwoPartMessage(b'"go"'),
        TwoPartMessage(b"{}"),
        TwoPartMessage(b'"\xff"'),
        TwoPartMessage(b'"stop"', b"x"),
        TwoPartMessage(b'"kill"', b"x"),
        ITEM,
        HANDSHAKE,
    ],
    ids=str,
)
def test_anything_else_from_the_requester_is_a_violation(message: TwoPartMessage) -> None:
    end = _worker_in(W.STREAMING)
    assert end.receive(message) is WorkerEvent.VIOLATION
    assert end.state is W.ABORTED


@pytest.mark.parametrize("state", WorkerState)
def test_an_empty_frame_is_ignored_by_the_worker(state: WorkerState) -> None:
    end = _worker_in(state)
    assert end.receive(EMPTY) is None
    assert end.state is state


@pytest.mark.parametrize(
    "state", [W.OPEN, W.STREAMING, W.STOPPING, W.FINISHING, W.LINGER, W.ABORTED]
)
def test_an_answer_tells_a_fresh_worker_that_it_is_not_the_first_and_breaks_any_other(
    state: WorkerState,
) -> None:
    for offer, event in (
        (ResumeOffer(1, 5, fresh=True), WorkerEvent.ANSWER),
        (ResumeOffer(2, 5), WorkerEvent.VIOLATION),
        (None, WorkerEvent.VIOLATION),
    ):
        end = WorkerEnd()
        end.handshake("s", offer)
        end.state = state
        assert end.receive(ANSWER) is event
        lingers = state is W.LINGER and event is WorkerEvent.VIOLATION
        assert end.state is (W.LINGER if lingers else W.ABORTED)


def test_a_fresh_handshake_opens_the_stream_at_once() -> None:
    end = WorkerEnd()
    end.handshake("s", ResumeOffer(1, 5, fresh=True))
    assert end.state is W.OPEN


@pytest.mark.parametrize("message", [STOP, KILL, SENTINEL, ITEM])
def test_in_linger_whatever_comes_changes_nothing(message: TwoPartMessage) -> None:
    end = _worker_in(W.LINGER)
    end.receive(message)
    end.advance(WorkerEvent.LOST)
    assert end.state is W.LINGER


# --- what the requester hears -------------------------------------------------------------


@pytest.mark.parametrize("captured", CAPTURES, ids=str)
def test_the_requester_understands_a_real_worker(captured: Capture) -> None:
    end = RequesterEnd()
    events = [end.receive(frame) for frame in captured.frames]
    items = len(captured.bodies)
    expected = [RequesterEvent.HANDSHAKE, RequesterEvent.PROLOGUE, *[RequesterEvent.ITEM] * items]
    if captured.scenario != "stop":
        expected.append(RequesterEvent.SENTINEL)
        assert end.state is R.ENDED
    assert events == expected
    assert end.handshake is not None
    assert end.handshake.stream_type is StreamType.RESPONSE
    assert end.prologue == ResponseStreamPrologue()


def test_a_body_beside_the_handshake_is_ignored() -> None:
    end = RequesterEnd()
    assert end.receive(TwoPartMessage(HANDSHAKE.header, b"body")) is RequesterEvent.HANDSHAKE


def test_an_error_prologue_ends_the_stream() -> None:
    end = _requester_in(R.OPEN)
    assert end.receive(REFUSAL) is RequesterEvent.REFUSAL
    assert end.prologue == ResponseStreamPrologue("no")
    assert end.state is R.ENDED
    assert end.receive(SENTINEL) is RequesterEvent.SENTINEL


def test_after_the_final_only_the_sentinel_is_expected() -> None:
    end = _requester_in(R.STREAMING)
    assert end.receive(ITEM) is RequesterEvent.ITEM
    end.advance(RequesterEvent.FINAL)
    with pytest.raises(ProtocolError, match="item received while final seen"):
        end.receive(ITEM)
    assert end.receive(SENTINEL) is RequesterEvent.SENTINEL
    assert end.state is R.ENDED


@pytest.mark.parametrize("state", [R.STREAMING, R.FINAL_SEEN, R.ENDED])
def test_an_empty_frame_after_the_prologue_is_ignored(state: RequesterState) -> None:
    end = _requester_in(state)
    assert end.receive(EMPTY) is None
    assert end.state is state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (R.ACCEPTED, EMPTY),
        (R.ACCEPTED, ITEM),
        (R.ACCEPTED, PROLOGUE),
        (R.ACCEPTED, SENTINEL),
        (R.OPEN, EMPTY),
        (R.OPEN, ITEM),
        (R.OPEN, SENTINEL),
        (R.OPEN, TwoPartMessage(PROLOGUE.header, b"x")),
        (R.STREAMING, STOP),
        (R.STREAMING, KILL),
        (R.STREAMING, HANDSHAKE),
        (R.STREAMING, TwoPartMessage(b'"go"')),
        (R.STREAMING, TwoPartMessage(b'"\xff"')),
        (R.STREAMING, TwoPartMessage(SENTINEL.header, b"x")),
        (R.FINAL_SEEN, KILL),
        (R.ENDED, ITEM),
    ],
    ids=str,
)
def test_a_frame_that_may_not_come_now_is_refused_and_changes_no_state(
    state: RequesterState, message: TwoPartMessage
) -> None:
    end = _requester_in(state)
    with pytest.raises(ProtocolError):
        end.receive(message)
    assert end.state is state


@pytest.mark.parametrize(
    ("final_seen", "cancelled", "state"),
    [
        (True, False, EndState.COMPLETE),
        (True, True, EndState.COMPLETE),
        (False, True, EndState.CANCELLED),
        (False, False, EndState.BROKEN),
    ],
)
def test_only_the_final_proves_that_a_stream_is_complete(
    final_seen: bool, cancelled: bool, state: EndState
) -> None:
    assert end_state(final_seen=final_seen, cancelled=cancelled) is state
