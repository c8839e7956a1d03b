"""Who is in a group next: every state that rayburst.train.inplace.roster lists."""

from hypothesis import given
from hypothesis import strategies as st

from rayburst.train.inplace.messages import Arrival
from rayburst.train.inplace.roster import Decision, Local, Worker, decide, is_due, plans


def here(step: int | None = 7) -> Arrival:
    return Arrival(step=step, generation=1, address=("h", 1), store=("h", 2))


def worker(name: str, **fields: object) -> Worker:
    return Worker(id=name, **fields)  # type: ignore[arg-type]


def look(*members: Worker, joiners: tuple[Worker, ...] = (), least: int = 1) -> Decision:
    return decide(members, joiners, least=least, most=3, is_formed=True)


def test_a_group_forms_when_all_have_come() -> None:
    early = [worker("a", arrival=here()), worker("b")]
    assert not decide(early, [], least=1, most=3, is_formed=False).commits
    both = [worker("a", arrival=here()), worker("b", arrival=here())]
    assert decide(both, [], least=1, most=3, is_formed=False).commits


def test_nothing_happens_while_nothing_changes() -> None:
    assert look(worker("a"), worker("b")) == Decision(wanted=("a", "b"))


def test_a_member_whose_time_has_come_departs_once_all_have_met() -> None:
    asked = look(worker("a"), worker("b", is_due=True))
    assert (asked.wanted, asked.call, asked.commits) == (("a",), "change", False)
    met = look(worker("a", arrival=here()), worker("b", is_due=True, arrival=here()))
    assert met.commits


def test_the_others_do_not_wait_for_a_lost_member() -> None:
    found = look(worker("a", arrival=here()), worker("b", is_lost=True))
    assert (found.wanted, found.call, found.commits) == (("a",), "broken", True)


def test_members_that_came_by_themselves_wait_for_the_rest() -> None:
    found = look(worker("a", arrival=here()), worker("b"))
    assert (found.wanted, found.call, found.commits) == (("a", "b"), "change", False)


def test_a_joiner_is_wanted_as_soon_as_it_is_ready() -> None:
    warming = worker("c")
    assert look(worker("a"), joiners=(warming,)).wanted == ("a",)
    ready = worker("c", arrival=here(None))
    assert look(worker("a"), joiners=(ready,)).wanted == ("a", "c")
    assert look(worker("a"), joiners=(worker("c", arrival=here(), is_lost=True),)).wanted == ("a",)


def test_a_group_does_not_outgrow_its_limit() -> None:
    joiners = tuple(worker(name, arrival=here(None)) for name in "cde")
    assert look(worker("a"), worker("b"), joiners=joiners).wanted == ("a", "b", "c")


def test_a_joiner_takes_the_place_of_one_that_leaves() -> None:
    found = look(
        worker("a"),
        worker("b", is_due=True),
        joiners=(worker("c", arrival=here(None)),),
        least=2,
    )
    assert (found.wanted, found.call, found.leaves) == (("a", "c"), "change", False)


def test_too_few_after_a_notice_save_and_leave_together() -> None:
    found = look(worker("a"), worker("b", is_due=True), least=2)
    assert (found.wanted, found.call) == (("a", "b"), "leave")


def test_too_few_after_a_loss_meet_once_more_to_save_and_leave() -> None:
    found = look(worker("a", arrival=here()), worker("b", is_lost=True), least=2)
    assert (found.wanted, found.leaves, found.commits) == (("a",), True, True)


def test_all_members_due_at_once_save_and_leave() -> None:
    found = look(worker("a", is_due=True), worker("b", is_due=True))
    assert (found.wanted, found.call) == (("a", "b"), "leave")


def test_members_that_wait_are_not_asked_to_leave_but_given_a_group_to_save_in() -> None:
    """A rank at the rendezvous hears no verdict."""
    found = look(worker("a", is_due=True, arrival=here()), worker("b", is_due=True, arrival=here()))
    assert (found.wanted, found.leaves, found.commits) == (("a", "b"), True, True)


def test_no_member_left_is_for_the_next_tier() -> None:
    assert look(worker("a", is_lost=True)).hand_over


def test_a_loss_after_others_have_finished_is_for_the_next_tier() -> None:
    assert not look(worker("a", has_returned=True), worker("b")).hand_over
    assert look(worker("a", has_returned=True), worker("b", is_lost=True)).hand_over


def test_a_node_is_left_near_its_deadline_and_at_once_without_one() -> None:
    assert not is_due(100.0, now_s=90.0, leave_s=5.0)
    assert is_due(100.0, now_s=95.0, leave_s=5.0)
    assert is_due(None, now_s=0.0, leave_s=5.0)


ONE = Local(rank=0, world=1, node_rank=0)


def planned(order: str, **steps: int | None) -> dict[str, object]:
    made = plans(
        list(order),
        {
            name: Arrival(step=step, generation=1, address=(name, 5), store=(name, 6))
            for name, step in steps.items()
        },
        dict.fromkeys(order, ONE),
        number=4,
        generation=2,
        reason="r",
    )
    return dict(made)


def test_state_comes_from_the_rank_that_is_furthest() -> None:
    made = planned("abc", a=6, b=7, c=None)
    assert {p.source for p in made.values()} == {1}  # type: ignore[attr-defined]
    assert {p.seat.store for p in made.values()} == {("a", 6)}  # type: ignore[attr-defined]
    assert [p.seat.rank for p in made.values()] == [0, 1, 2]  # type: ignore[attr-defined]


def test_equal_state_is_not_sent_and_lost_state_is_loaded() -> None:
    same = planned("ab", a=7, b=7)
    assert all(p.source is None and not p.restores for p in same.values())  # type: ignore[attr-defined]
    none = planned("ab", a=None, b=None)
    assert all(p.source is None and p.restores for p in none.values())  # type: ignore[attr-defined]


def test_who_has_no_seat_departs() -> None:
    made = planned("b", a=7, b=7)
    assert made["a"].kind == "depart"  # type: ignore[attr-defined]
    assert made["b"].seat.rank == 0  # type: ignore[attr-defined]


@st.composite
def groups(draw: st.DrawFn) -> tuple[list[Worker], list[Worker], int]:
    def draw_worker(name: str) -> Worker:
        return Worker(
            id=name,
            is_lost=draw(st.booleans()),
            is_due=draw(st.booleans()),
            arrival=here() if draw(st.booleans()) else None,
        )

    members = [draw_worker(f"m{i}") for i in range(draw(st.integers(1, 4)))]
    joiners = [draw_worker(f"j{i}") for i in range(draw(st.integers(0, 3)))]
    return members, joiners, draw(st.integers(1, 4))


@given(groups())
def test_no_group_waits_for_ever(found: tuple[list[Worker], list[Worker], int]) -> None:
    """Once everybody who can has come, something happens: a commit, or the next tier."""
    members, joiners, least = found
    decision = decide(members, joiners, least=least, most=4, is_formed=True)
    alive = [m for m in members if not m.is_lost]
    all_wait = bool(alive) and all(m.arrival for m in alive)
    if all_wait or not alive:
        assert decision.commits or decision.hand_over
    if decision.commits:
        assert set(decision.wanted) <= {w.id for w in [*alive, *joiners] if w.arrival}
        assert decision.wanted
        assert any(m.id in decision.wanted for m in members), "somebody holds the state"
        assert decision.leaves or len(decision.wanted) >= least
