"""What a process remembers of where sessions are: bounded, the newest, and nothing that it was told to forget."""

from hypothesis import given
from hypothesis import strategies as st

from actors.routes import Routes

STEPS = st.lists(st.tuples(st.sampled_from(["found", "forget"]), st.sampled_from("abcdef"), st.sampled_from("xy")))


@given(STEPS, st.integers(1, 4))
def test_routes_are_those_last_found_or_found_again_at_most_so_many_and_nothing_that_was_forgotten(
    steps: list[tuple[str, str, str]], most: int
) -> None:
    routes, truth = Routes(most), dict[str, str]()
    for step, session, home in steps:
        truth.pop(session, None)
        if step == "found":
            routes.found(session, home)
            truth[session] = home
        else:
            routes.forget(session)
        known = dict(list(truth.items())[-most:])
        assert {s: h for s in "abcdef" if (h := routes.home(s)) is not None} == known
        truth = known
