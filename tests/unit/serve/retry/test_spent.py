"""Time spent elsewhere, told across clocks that differ."""

from hypothesis import given
from hypothesis import strategies as st

from rayburst.serve.retry.spent import Spent


def stamp(at_s: float, source: str = "node") -> bytes:
    return f"{source}/{round(1000 * at_s)}".encode()


@given(
    skew_s=st.floats(-1e6, 1e6),
    delays_s=st.lists(st.floats(0, 0.5), min_size=1, max_size=50),
    late_s=st.floats(0, 30),
)
def test_what_a_retry_has_spent_is_told_whatever_the_clocks_say(skew_s, delays_s, late_s):
    spent, now_s = Spent(), 2e9
    for delay_s in delays_s:
        now_s += 0.1
        found_s = spent.seconds(stamp(now_s - delay_s + skew_s), now_s)
        assert -0.002 <= found_s <= delay_s + 0.002
    found_s = spent.seconds(stamp(now_s - late_s + skew_s), now_s)
    least_s = min(*delays_s, late_s, late_s)
    assert abs(found_s - (late_s - least_s)) < 0.002


def test_each_haproxy_has_its_own_clock():
    spent = Spent()
    assert spent.seconds(stamp(100, "a"), 100.0) == 0
    assert spent.seconds(stamp(50, "b"), 100.0) == 0  # 50 s behind, and not 50 s late
    assert abs(spent.seconds(stamp(49, "b"), 100.0) - 1) < 1e-9


def test_a_clock_that_was_set_back_is_believed_after_two_minutes():
    spent = Spent()
    spent.seconds(stamp(0), 0.0)
    assert abs(spent.seconds(stamp(0), 10.0) - 10) < 1e-9
    spent.seconds(stamp(60), 70.0)
    assert spent.seconds(stamp(190), 200.0) == 0


def test_what_cannot_be_read_costs_nothing():
    spent = Spent()
    for bad in (b"", b"node", b"node/", b"node/-5", b"node/x", b"node/" + b"9" * 400):
        assert spent.seconds(bad, 100.0) == 0.0


def test_strangers_cannot_fill_the_memory():
    spent = Spent()
    for n in range(3000):
        spent.seconds(stamp(1, f"s{n}"), 1.0)
    assert len(spent._offsets) == 1024
