import pytest

from dialback.outcomes import Outcome
from dialback.queue.note import Note, note_key, note_subject, notes_stream


def numbers(*found: int) -> frozenset[int]:
    return frozenset(found)


FULL = Note(
    handed_back=numbers(1, 2), retried=numbers(3), superseded=numbers(5), finished=Outcome.STOPPED
)


@pytest.mark.parametrize(
    ("note", "number", "crashes"),
    [
        (Note(), 1, 0),
        (Note(), 2, 1),
        (Note(), 4, 3),
        (Note(handed_back=numbers(1)), 2, 0),
        (Note(handed_back=numbers(1)), 3, 1),
        (Note(handed_back=numbers(1), retried=numbers(2), superseded=numbers(3)), 5, 1),
        (Note(handed_back=numbers(1), superseded=numbers(1)), 3, 1),  # both, and one delivery
        (Note(retried=numbers(7)), 3, 2),  # a later one, or an earlier consumer's
        (Note(handed_back=numbers(*range(1, 11))), 11, 0),
        (Note(handed_back=numbers(1, 2, 3)), 1, 0),
    ],
)
def test_a_delivery_without_a_note_was_a_crash(note: Note, number: int, crashes: int) -> None:
    assert note.crashes_before(number) == crashes


def test_only_retries_are_attempts() -> None:
    assert (Note().attempts, FULL.attempts) == (0, 1)


def test_two_notes_merge_without_losing_a_number() -> None:
    other = Note(handed_back=numbers(2, 4), retried=numbers(6))
    merged = Note(
        handed_back=numbers(1, 2, 4),
        retried=numbers(3, 6),
        superseded=numbers(5),
        finished=Outcome.STOPPED,
    )
    assert FULL.merged(other) == merged
    assert other.merged(FULL) == merged


@pytest.mark.parametrize("note", [Note(), FULL])
def test_merging_what_is_known_changes_nothing(note: Note) -> None:
    assert note.merged(note) == note
    assert note.merged(Note()) == note


def test_the_first_outcome_stays() -> None:
    first, second = Note(finished=Outcome.COMPLETED), Note(finished=Outcome.CLIENT_GONE)
    assert first.merged(second).finished is Outcome.COMPLETED
    assert Note().merged(second).finished is Outcome.CLIENT_GONE


def test_a_note_is_json() -> None:
    stored = b'{"handed_back":[1,2],"retried":[3],"superseded":[5],"finished":"stopped"}'
    assert FULL.encode() == stored
    assert Note.decode(stored) == FULL
    assert Note().encode() == b'{"handed_back":[],"retried":[],"superseded":[]}'
    assert Note.decode(Note().encode()) == Note()


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (b"", Note()),
        (b"\xff", Note()),
        (b"[]", Note()),
        (b'{"handed_back":["one"]}', Note()),
        (b"{}", Note()),
        (b'{"handed_back":[4],"of a later version":1}', Note(handed_back=numbers(4))),
        (b'{"retried":[1],"finished":"of a later version"}', Note(retried=numbers(1))),
    ],
)
def test_what_cannot_be_read_says_nothing(data: bytes, note: Note) -> None:
    assert Note.decode(data) == note


def test_a_key_names_the_message_and_not_another_of_a_recreated_stream() -> None:
    key = note_key("JOBS_a_C_b_E_c", 17, 1_700_000_000_123_456_789)
    assert note_subject(key) == "$KV.dialback_notes.JOBS_a_C_b_E_c.17-1700000000123456789"


def test_the_bucket_keeps_one_value_of_a_key_for_thirty_days() -> None:
    config = notes_stream(3)
    assert (config["name"], config["subjects"]) == ("KV_dialback_notes", ["$KV.dialback_notes.>"])
    assert (config["max_msgs_per_subject"], config["num_replicas"]) == (1, 3)
    assert config["max_age"] == 30 * 86_400 * 1_000_000_000
