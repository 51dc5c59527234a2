"""What stands beside others ends when nobody needs it any more, and not before."""

from actors.need import Need


def test_it_is_needed_as_long_as_somebody_is_seen_and_for_a_while_after() -> None:
    now = [100.0]
    need = Need(clock=lambda: now[0])
    assert need.there(900.0)  # somebody is about to come
    now[0] += 900.0
    assert need.there(900.0)
    now[0] += 0.1
    assert not need.there(900.0)
    assert need.there(86_400.0)  # who has something to lose waits longer
    assert need.there(None)
    need.seen()
    assert need.there(0.0)
    now[0] += 0.1
    assert not need.there(0.0)
