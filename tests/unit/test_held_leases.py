from dialback.held_leases import Forget, Held, HeldLease, HeldLeases, Ready, Released, as_line

A, B = "$JS.ACK.S.normal.1.7.1.99.0", "$JS.ACK.S.normal.2.8.1.99.0"


def table(*reports: Held | Released | Ready | Forget) -> HeldLeases:
    leases = HeldLeases(ack_wait=30.0)
    leases.feed(b"".join(map(as_line, reports)))
    return leases


def test_a_report_is_one_line_of_json() -> None:
    assert as_line(Held(A, 12.5)) == b'["held","$JS.ACK.S.normal.1.7.1.99.0",12.5]\n'
    assert as_line(Released(A)) == b'["released","$JS.ACK.S.normal.1.7.1.99.0"]\n'
    assert as_line(Ready()) == b'["ready"]\n'
    assert as_line(Forget()) == b'["forget"]\n'


def test_what_is_held_at_the_end_is_handed_back() -> None:
    leases = table(Held(A, 100.0), Held(B, 101.0), Released(A))
    assert leases.alive(110.0) == [HeldLease(B, 131.0)]


def test_a_lease_that_may_have_ended_is_left_alone() -> None:
    leases = table(Held(A, 100.0), Held(B, 120.0))
    assert [lease.reply for lease in leases.alive(129.9)] == [A, B]
    assert [lease.reply for lease in leases.alive(130.0)] == [B]
    assert leases.alive(150.0) == []


def test_a_confirmation_moves_the_end_of_the_lease() -> None:
    assert table(Held(A, 100.0), Held(A, 110.0)).alive(135.0) == [HeldLease(A, 140.0)]


def test_reports_may_come_in_pieces() -> None:
    leases = HeldLeases(ack_wait=30.0)
    for byte in as_line(Held(A, 100.0)) + as_line(Held(B, 100.0)) + as_line(Released(A)):
        leases.feed(bytes([byte]))
    assert leases.alive(110.0) == [HeldLease(B, 130.0)]


def test_a_last_line_that_was_cut_off_says_nothing() -> None:
    leases = HeldLeases(ack_wait=30.0)
    leases.feed(as_line(Held(A, 100.0)) + as_line(Released(A))[:-1])
    assert [lease.reply for lease in leases.alive(110.0)] == [A]


def test_after_a_torn_line_the_next_ones_are_read() -> None:
    leases = table(Held(A, 100.0))
    leases.feed(as_line(Held(B, 100.0))[:9] + b"\n" + as_line(Forget()) + as_line(Held(B, 105.0)))
    assert leases.alive(110.0) == [HeldLease(B, 135.0)]


def test_what_is_no_report_changes_nothing() -> None:
    leases = table(Held(A, 100.0))
    leases.feed(b'\n["boo"]\n{"held":1}\n["held",1,"x"]\n\xff\n')
    assert (len(leases), leases.ready) == (1, False)


def test_a_process_says_when_it_is_ready() -> None:
    assert not HeldLeases(ack_wait=30.0).ready
    assert table(Ready()).ready
