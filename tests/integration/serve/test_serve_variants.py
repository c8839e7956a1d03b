"""A model with variants under real overload: it degrades before it sheds, and says so."""

from __future__ import annotations

from collections import Counter

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from support import wait_for

from rayburst.serve.deploy import delete

from .conftest import Head
from .test_serve_model import BODY, Load, is_fast, put

pytestmark = pytest.mark.timeout(240)
ABLE = 10  # requests a second that fp32 can answer


def figures(url: str) -> dict[str, float]:
    """What the replica counts: answers by variant, and the rung on which it stands."""
    page = requests.get(f"{url}/metrics", timeout=60).text
    samples = [s for family in text_string_to_metric_families(page) for s in family.samples]
    counted = {
        s.labels["variant"]: s.value for s in samples if s.name == "rayburst_serve_variant_total"
    }
    (rung,) = (s.value for s in samples if s.name == "rayburst_serve_rung")
    return {**counted, "rung": rung}


@pytest.mark.parametrize("lane", ["auto", pytest.param("stock", marks=pytest.mark.soak)])
def test_overload_is_answered_by_a_cheaper_form_and_never_by_one_below_the_floor(
    fast_head: Head, lane: str
) -> None:
    name = f"forms-{lane}"
    url = put(fast_head, name=name, target="forms", options=f'{{"lane": "{lane}"}}')

    def once() -> requests.Response:
        return requests.post(f"{url}/predict", data=BODY, timeout=30)

    def ready() -> requests.Response | None:
        answer = once()
        return answer if answer.ok and (lane == "stock" or is_fast(answer)) else None

    alone = wait_for(ready, what="HAProxy knows the replica", timeout_s=60)
    assert (alone.json(), alone.headers["x-rayburst-variant"]) == ({"variant": "fp32"}, "fp32")
    assert "x-rayburst-degraded" not in alone.headers

    with Load(url, 2, every_s=0.5) as few:  # these stay when the others are gone
        with Load(url, 24) as many:  # 24 requests at once are 2.4 s of fp32, 1.5 s are promised
            wait_for(lambda: figures(url)["rung"] or None, what="overload", timeout_s=30)
            many.more(8 * ABLE)
            degraded = once()
        during = sum((c.variants for c in many.clients), Counter[str]())
        assert degraded.json() == {"variant": "int8"}
        assert degraded.headers["x-rayburst-variant"] == "int8"
        assert degraded.headers["x-rayburst-degraded"] == "0.9850"
        refused = sum(c.seen["503"] + c.seen["504"] for c in many.clients)
        assert during["int8"] > 6 * ABLE > 10 * refused
        assert "tiny" not in during
        few.more(1)
        wait_for(lambda: figures(url)["rung"] == 0 or None, what="the top rung", timeout_s=30)
        back = once()
    assert (back.json(), back.headers["x-rayburst-variant"]) == ({"variant": "fp32"}, "fp32")
    counted = figures(url)
    assert counted["int8"] >= during["int8"]
    assert "tiny" not in counted
    delete(fast_head.dashboard_url, fast_head.token, name=name)
