from dialback.transport.messages import PayloadCodec
from dialback.transport.tally import Tally

JSON = PayloadCodec.JSON


def _item(text: str) -> bytes:
    """A body as a worker writes it."""
    return f'{{"data":{{"data":"{text}"}},"complete_final":false}}'.encode()


def _tally(*items: str, history_bytes: int = 200) -> Tally:
    tally = Tally(resumable=True, history_bytes=history_bytes)
    for item in items:
        tally.add([_item(item)])
    return tally


def test_the_items_go_with_the_answer_until_they_are_forgotten() -> None:
    tally = _tally("first", "second")
    assert tally.answer(JSON).endswith(b'["first","second"]')
    assert b"second" not in tally.answer(JSON, history=False)
    tally.forget_history()
    tally.add([_item("third")])
    assert b"third" not in tally.answer(JSON)
    assert tally.items == 3


def test_more_items_than_there_is_room_for_are_not_kept() -> None:
    assert b"first" not in _tally("first", "second", history_bytes=60).answer(JSON)
