"""What a deployment with a floor asks for, and what its replicas ask for."""

import pytest
from ray._raylet import node_labels_match_selector

import rayburst as rb
from rayburst.errors import ModelError
from rayburst.serve.floor import floor_of, is_off_spot, placement, selector

DESK = {"ray.io/market-type": "on-demand", "rayburst.io/market": "on-prem"}
SPOT = {"ray.io/market-type": "spot"}


class Doubler:
    """A model."""

    def predict(self, batch: list[float]) -> list[float]:
        return [2 * one for one in batch]


def test_a_deployment_carries_its_floor_where_ray_looks_for_labels() -> None:
    asked = selector(3)
    assert floor_of(asked) == 3
    assert node_labels_match_selector(DESK, asked), "without the hook it stays off spot"
    assert not node_labels_match_selector(SPOT, asked)
    assert not node_labels_match_selector({}, asked), "what is not known to be off spot is not"
    assert floor_of({**asked, "a": "b"}) == 3
    assert [floor_of(other) for other in (None, {}, {"a": "b"})] == [0, 0, 0]
    assert is_off_spot(DESK) and not is_off_spot(SPOT) and not is_off_spot({})


def test_a_replica_of_the_floor_is_never_on_spot_and_one_above_it_prefers_spot() -> None:
    asked = {**selector(2), "ray.io/accelerator-type": "A100"}
    gpu = {"ray.io/accelerator-type": "A100"}
    floor, more = placement(asked, off_spot=True), placement(asked, off_spot=False)
    assert node_labels_match_selector({**DESK, **gpu}, floor["label_selector"])
    assert not node_labels_match_selector({**SPOT, **gpu}, floor["label_selector"])
    assert "fallback_strategy" not in floor, "never is not at first"
    assert node_labels_match_selector({**SPOT, **gpu}, more["label_selector"])
    assert not node_labels_match_selector({**DESK, **gpu}, more["label_selector"])
    assert more["fallback_strategy"] == [{"label_selector": gpu}], "what else was asked for holds"


def test_the_option_reaches_serve_and_no_floor_asks_for_no_label() -> None:
    served = rb.serve.model(replicas={"least": 4, "floor": 2})(Doubler)
    options = served.bind()._bound_deployment.ray_actor_options
    assert floor_of(options["label_selector"]) == 2
    plain = served.options(replicas={"least": 4}).bind()._bound_deployment.ray_actor_options
    assert "label_selector" not in plain


@pytest.mark.parametrize("replicas", [{"least": 1, "floor": 2}, {"most": 3, "floor": 4}])
def test_a_floor_above_what_there_ever_is_is_refused(replicas: dict[str, int]) -> None:
    with pytest.raises(ModelError, match=r"replicas.*floor \d is more than .* give at most"):
        rb.serve.model(replicas=replicas)(Doubler)
