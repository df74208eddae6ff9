from dialback.queue.watchdog import Silence


def test_silence_adds_up_while_signs_of_life_are_expected() -> None:
    silence = Silence(100.0)
    for second in range(1, 11):
        silence.look(100.0 + second, heard=0.0, expected=True)
    assert silence.seconds == 10.0


def test_any_sign_of_life_ends_it() -> None:
    silence = Silence(0.0)
    silence.look(1.0, heard=0.0, expected=True)
    silence.look(2.0, heard=1.5, expected=True)
    assert silence.seconds == 0.0
    silence.look(3.0, heard=1.5, expected=True)
    assert silence.seconds == 1.0


def test_there_is_no_silence_while_nothing_is_expected() -> None:
    silence = Silence(0.0)
    silence.look(1.0, heard=0.0, expected=True)
    silence.look(2.0, heard=0.0, expected=False)
    assert silence.seconds == 0.0


def test_what_was_not_watched_does_not_count() -> None:
    silence = Silence(0.0)
    silence.look(1.0, heard=0.0, expected=True)
    silence.look(500.0, heard=0.0, expected=True)  # the event loop stood still meanwhile
    assert silence.seconds == 2.0
