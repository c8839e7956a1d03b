"""Steering one group through its changes: lost, due, called, formed, handed over."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rayburst.train.inplace.messages import Arrival, Look, Pulse, Sight
from rayburst.train.inplace.roster import InPlaceOptions, Local
from rayburst.train.inplace.steering import Member, Moment, Outcome, Steering
from rayburst.train.losses import LossBudget, LossOptions


class Cluster:
    """Three members on nodes of their own, seen once a second; the test changes what it likes."""

    def __init__(self, least: int = 1) -> None:
        self.told: list[tuple[str, Any]] = []
        self.dead_ports: set[str] = set()
        self.now = 1000.0
        self.incarnation = "first"
        self.members = {n: Member(id=n, node=f"node-{n}", host=f"host-{n}") for n in "abc"}
        self.joiners: dict[str, Member] = {}
        self.silent_s: dict[str, float] = {}
        self.arrivals: dict[str, Arrival] = {}
        self.waiting_s: dict[str, float] = {}
        self.draining: dict[str, float | None] = {}
        self.answers = True
        self.steering = Steering(
            tell=lambda method, what: self.told.append((method, what)),
            unreachable=self.unreachable,
            options=InPlaceOptions(leave_margin_s=3, suspect_after_s=3, hung_after_s=60),
            budget=LossBudget(LossOptions(rapid_losses=2, rapid_within_s=60)),
            least=least,
            most=4,
        )

    def unreachable(self, addresses: Mapping[str, tuple[str, int]]) -> set[str]:
        return set(addresses) & self.dead_ports

    def arrive(self, *names: str, step: int | None = 7, generation: int = 1) -> None:
        for name in names:
            self.arrivals[name] = Arrival(
                step=step, generation=generation, address=(name, 1), store=(name, 2)
            )

    def look(self) -> Outcome:
        self.now += 1
        sights = {
            name: Sight(
                silent_s=self.silent_s.get(name, 0.5),
                pulse=Pulse(address=(name, 1), step_s=2.0, leave_s=8.0),
                arrival=self.arrivals.get(name),
                waiting_s=self.waiting_s.get(name, 0.1),
            )
            for name in [*self.members, *self.joiners]
        }
        seen = Look(incarnation=self.incarnation, number=0, members=sights)
        outcome = self.steering.steer(
            Moment(
                look=seen if self.answers else None,
                members=list(self.members.values()),
                joiners=list(self.joiners.values()),
                draining=self.draining,
                now_s=self.now,
                monotonic_s=self.now,
            )
        )
        for name in outcome.lost:
            assert name in self.members
        if outcome.forms is not None:
            order = outcome.forms.wanted
            places = dict.fromkeys(order, Local(rank=0, world=1, node_rank=0))
            known = {**self.members, **self.joiners}
            self.steering.form(order, places, outcome.forms)
            self.members = {name: known[name] for name in order}
            self.arrivals = {}
        return outcome

    def formed(self) -> "Cluster":
        self.arrive("a", "b", "c", step=None, generation=0)
        assert self.look().forms is not None
        self.told.clear()
        return self

    def calls(self) -> list[str]:
        return [what.kind for method, what in self.told if method == "call"]

    def plans(self) -> dict[str, Any]:
        return dict([what for method, what in self.told if method == "commit"][-1])


def test_the_first_members_meet_and_load_what_is_stored() -> None:
    cluster = Cluster()
    assert cluster.look().forms is None
    assert not cluster.steering.is_formed
    cluster.arrive("a", "b", "c", step=None, generation=0)
    cluster.look()
    assert cluster.steering.is_formed
    assert all(plan.restores for plan in cluster.plans().values())


def test_who_departs_is_not_forgotten_before_it_has_its_plan() -> None:
    cluster = Cluster().formed()
    cluster.draining, cluster.dead_ports = {"node-b": cluster.now}, {"c"}
    cluster.arrive("a", "b")
    assert cluster.look().lost == ["c"]
    assert cluster.plans()["b"].kind == "depart"
    assert [what for method, what in cluster.told if method == "drop"] == [["c"]]


def test_a_broken_collective_leads_to_the_member_whose_port_is_closed() -> None:
    cluster = Cluster().formed()
    cluster.dead_ports = {"b"}
    assert cluster.look().lost == [], "nobody asks while all is well"
    cluster.arrive("a", step=7)
    assert cluster.look().lost == ["b"]
    assert cluster.calls() == ["broken"]
    cluster.arrive("c", step=8)
    cluster.look()
    assert list(cluster.members) == ["a", "c"]
    assert {plan.source for plan in cluster.plans().values()} == {1}
    assert "host-b was lost" in cluster.plans()["a"].reason


def test_a_silent_member_is_lost_only_if_its_port_is_silent_too() -> None:
    cluster = Cluster().formed()
    cluster.silent_s["b"] = 5.0
    assert cluster.look().lost == []
    cluster.dead_ports = {"b"}
    assert cluster.look().lost == ["b"]


def test_a_member_that_hangs_is_lost_in_the_end() -> None:
    cluster = Cluster().formed()
    cluster.silent_s["b"] = 61.0
    assert cluster.look().lost == ["b"]
    late = Cluster().formed()
    late.arrive("a", "c")
    late.waiting_s = {"a": 59.0, "c": 1.0}
    assert late.look().lost == []
    late.waiting_s["a"] = 61.0
    assert late.look().lost == ["b"]


def test_a_member_that_has_returned_may_be_silent() -> None:
    cluster = Cluster().formed()
    cluster.members["b"] = replace(cluster.members["b"], has_returned=True)
    cluster.silent_s["b"] = 100.0
    cluster.dead_ports = {"b"}
    assert cluster.look().lost == []
    assert not cluster.steering.handed_over


def test_a_drained_node_is_used_until_what_leaving_needs() -> None:
    cluster = Cluster().formed()
    cluster.draining = {"node-b": cluster.now + 10}
    for _ in range(4):  # margin 3 s and a step of 2 s
        cluster.look()
        assert cluster.calls() == []
    cluster.look()
    assert cluster.calls() == ["change"]
    cluster.arrive("a", "b", "c")
    cluster.look()
    assert cluster.plans()["b"].kind == "depart"
    assert list(cluster.members) == ["a", "c"]


def test_a_group_that_would_be_too_small_leaves_early_enough_to_save() -> None:
    cluster = Cluster(least=3).formed()
    cluster.draining = {"node-b": cluster.now + 13.5}
    cluster.look()
    assert cluster.calls() == ["leave"], "3 s margin, 2 s step and 8 s to save"


def test_a_call_is_made_once() -> None:
    cluster = Cluster().formed()
    cluster.draining = {"node-b": None}
    for _ in range(3):
        cluster.look()
    assert cluster.calls() == ["change"]


def test_a_joiner_takes_part_once_it_waits() -> None:
    cluster = Cluster().formed()
    cluster.joiners = {"d": Member(id="d", node="node-d")}
    cluster.look()
    assert cluster.calls() == []
    cluster.arrive("d", step=None, generation=0)
    cluster.look()
    assert cluster.calls() == ["change"]
    cluster.arrive("a", "b", "c")
    cluster.look()
    assert list(cluster.members) == ["a", "b", "c", "d"]
    assert {plan.source for plan in cluster.plans().values()} == {0}


def test_a_joiner_that_died_while_it_waited_is_left_out() -> None:
    cluster = Cluster().formed()
    cluster.joiners = {"d": Member(id="d", node="node-d")}
    cluster.arrive("d", step=None, generation=0)
    cluster.dead_ports = {"d"}
    cluster.look()
    assert cluster.calls() == []


def test_a_rendezvous_that_began_anew_hears_the_call_again() -> None:
    cluster = Cluster().formed()
    cluster.draining = {"node-b": None}
    cluster.look()
    cluster.incarnation = "second"
    cluster.look()
    assert cluster.calls() == ["change", "change"]


def test_plans_that_were_lost_with_the_rendezvous_are_given_again() -> None:
    cluster = Cluster().formed()
    cluster.arrive("a", "b", "c", generation=1)
    cluster.look()
    given = cluster.plans()
    cluster.told.clear()
    cluster.incarnation = "second"
    cluster.arrive("c", generation=1)  # the others have gone on to generation 2
    cluster.look()
    assert cluster.plans() == {"c": given["c"]}
    assert cluster.calls() == []


def test_members_lost_over_and_over_are_for_the_next_tier() -> None:
    cluster = Cluster().formed()
    cluster.silent_s = dict.fromkeys("abc", 5.0)
    for name in "abc":
        assert not cluster.steering.handed_over
        cluster.dead_ports |= {name}
        cluster.look()
    assert "over and over" in cluster.steering.handed_over
    assert not cluster.steering.is_formed
    assert set(cluster.calls()) == {"broken"}


def test_losses_between_which_steps_were_done_are_not_over_and_over() -> None:
    cluster = Cluster().formed()
    for step in range(3, 9):
        name = sorted(cluster.members)[-1]
        cluster.dead_ports = {name}
        left = set(cluster.members) - {name}
        cluster.arrive(*left, step=step, generation=cluster.steering.generation)
        cluster.look()
        assert name not in cluster.members
        cluster.members[f"{name}+"] = Member(id=f"{name}+", node=f"node-{name}+")
    assert not cluster.steering.handed_over


def test_a_group_that_breaks_without_a_step_though_all_answer_is_for_the_next_tier() -> None:
    cluster = Cluster().formed()
    for generation in range(1, 9):
        assert not cluster.steering.handed_over
        cluster.arrive("a", "b", "c", step=7, generation=generation)
        cluster.look()
    assert "over and over" in cluster.steering.handed_over


def test_members_that_go_together_are_one_loss() -> None:
    cluster = Cluster().formed()
    cluster.silent_s = dict.fromkeys("abc", 5.0)
    cluster.dead_ports = {"a", "b", "c"}
    assert cluster.look().lost == ["a", "b", "c"]
    assert cluster.steering.handed_over == "no member is left"


def test_after_the_handing_over_members_that_come_are_sent_away() -> None:
    cluster = Cluster().formed()
    cluster.steering.hand_over("because")
    assert cluster.calls() == ["broken"]
    cluster.arrive("a")
    assert cluster.look().forms is None
    assert cluster.plans()["a"].kind == "abandon"


def test_a_whole_group_saves_before_it_is_handed_over() -> None:
    cluster = Cluster().formed()
    cluster.steering.hand_over("because", saves=True)
    assert cluster.calls() == ["leave"]
    assert not cluster.steering.is_formed


def test_a_rendezvous_that_stays_away_is_for_the_next_tier() -> None:
    cluster = Cluster().formed()
    cluster.answers = False
    for _ in range(14):
        cluster.look()
    assert cluster.steering.is_formed
    for _ in range(3):
        cluster.look()
    assert "does not answer" in cluster.steering.handed_over
