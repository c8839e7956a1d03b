"""Texts that are written together are, token for token, those that are written alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayburst.serve.decode import Generation, generate
from rayburst.serve.generate.engine import Engine, EngineOptions, Writing
from rayburst.serve.generate.request import Request
from rayburst.train.gpt import GPT, GPTConfig

BLOCK = 12


def random_model(dtype: torch.dtype) -> GPT:
    torch.set_num_threads(1)
    torch.manual_seed(11)
    made = GPT(GPTConfig(block_size=BLOCK, n_layer=2, n_head=2, n_embd=16)).eval()
    with torch.no_grad():  # untrained logits are nearly flat; make them differ
        for parameter in made.parameters():
            parameter.mul_(4)
    return made.to(dtype).requires_grad_(False)


@pytest.fixture(scope="module")
def exact() -> GPT:
    """In float64, what a batched product rounds differently is 1e-16: it decides no token."""
    return random_model(torch.float64)


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_model(torch.float32)


def alone(model: GPT, request: Request) -> bytes:
    """The model's own loop: one text, everything read again for each token."""
    idx = torch.tensor([list(request.prompt)])
    own = model.generate(idx, request.max_tokens, temperature=0.0)
    return bytes(own[0, len(request.prompt) :].tolist())


@dataclass(frozen=True)
class Visit:
    """A request that comes at a step, and whose client leaves after some of its tokens."""

    request: Request
    comes: int
    leaves_after: int | None = None


@dataclass
class Story:
    texts: list[bytes]
    left: list[bool]
    engine: Engine


def play(model: GPT, visits: list[Visit], **options: Any) -> Story:
    """Writes all texts; holds the books after every step."""
    engine = Engine(model, EngineOptions(**options))
    writings: dict[int, Writing] = {}
    texts = [b""] * len(visits)
    left = [False] * len(visits)
    step = 0
    while engine.is_busy or step <= max(visit.comes for visit in visits):
        for place, visit in enumerate(visits):
            if visit.comes == step:
                writings[place] = engine.add(visit.request)
        for event in engine.step():
            place = next(n for n, w in writings.items() if w is event.writing)
            assert not left[place], "an event of a text that was cancelled"
            texts[place] += event.data
        for place, visit in enumerate(visits):
            if place in writings and visit.leaves_after == len(texts[place]):
                left[place] |= engine.cancel(writings[place])
        balance(engine)
        step += 1
        assert step < 2000
    return Story(texts, left, engine)


def balance(engine: Engine) -> None:
    """Every block is used by exactly the texts that have it in their tables."""
    scheduler, pool = engine.scheduler, engine.pool
    uses = Counter(block for text in scheduler.running for block in text.blocks)
    assert [pool.users(block) for block in range(pool.count)] == [
        uses[block] for block in range(pool.count)
    ]
    assert pool.available == pool.count - len(uses)
    assert not [text for text in scheduler.waiting if text.blocks]


VISITS = st.lists(
    st.builds(
        Visit,
        request=st.builds(
            Request,
            prompt=st.text("ab", min_size=1, max_size=BLOCK + 4).map(str.encode),
            max_tokens=st.integers(1, 10),
            temperature=st.just(0.0),
        ),
        comes=st.integers(0, 12),
        leaves_after=st.none() | st.integers(0, 6),
    ),
    min_size=1,
    max_size=8,
)


SETUPS = st.fixed_dictionaries(
    {
        "block_tokens": st.integers(1, 5),
        "spare": st.integers(0, 4),  # blocks beyond those of one whole text
        "max_running": st.integers(1, 4),
        "step_tokens": st.integers(1, 20),
        "reuse_prefixes": st.booleans(),
    }
)


@given(visits=VISITS, setup=SETUPS)
def test_any_arrivals_and_cancellations_give_the_texts_of_one_at_a_time(
    exact: GPT, visits: list[Visit], setup: dict[str, Any]
) -> None:
    spare, size = setup["spare"], setup["block_tokens"]
    options = {key: value for key, value in setup.items() if key != "spare"}
    story = play(exact, visits, blocks=-(-BLOCK // size) + spare, **options)
    for visit, text, has_left in zip(visits, story.texts, story.left, strict=True):
        whole = alone(exact, visit.request)
        assert text == (whole[: visit.leaves_after] if has_left else whole)
    assert story.engine.pool.available == story.engine.pool.count


def test_texts_that_lost_their_blocks_or_share_them_are_the_same_too(exact: GPT) -> None:
    """What random schedules may miss: that preemption and reuse did happen."""
    prompts = (b"abab", b"ababab", b"babab", b"abababab")
    visits = [
        Visit(Request(prompt=prompt, max_tokens=8, temperature=0.0), comes)
        for comes, prompt in enumerate(prompts)
    ]
    story = play(exact, visits, block_tokens=2, blocks=7, max_running=4)
    assert story.engine.scheduler.preemptions > 0
    assert story.texts == [alone(exact, visit.request) for visit in visits]
    wide = play(exact, visits, block_tokens=2, blocks=40, max_running=4)
    assert wide.engine.scheduler.preemptions == 0
    assert wide.engine.pool.findable > 0
    assert wide.texts == story.texts


def test_in_float32_a_text_departs_only_where_two_tokens_are_as_good(model: GPT) -> None:
    """Batched products round differently: a token may differ where the best two are that near."""
    visits = [
        Visit(Request(prompt=bytes((n, n + 7)), max_tokens=18, temperature=0.0), n // 3)
        for n in range(24)
    ]
    story = play(model, visits, block_tokens=4, max_running=16)
    for visit, text in zip(visits, story.texts, strict=True):
        whole = alone(model, visit.request)
        same = next((n for n, (a, b) in enumerate(zip(text, whole, strict=True)) if a != b), None)
        if same is not None:
            read = torch.tensor([list(visit.request.prompt + whole[:same])])
            best = model(read[:, -BLOCK:])[0][0, -1].topk(2).values
            assert float(best[0] - best[1]) < 1e-4


SAMPLED = [
    Request(prompt=b"a", max_tokens=5, seed=1),
    Request(prompt=b"abab", max_tokens=20, temperature=0.8, top_k=20, seed=2),
    Request(prompt=b"longer than one block", max_tokens=6, temperature=1.3, seed=3),
    Request(prompt=b"abababab", max_tokens=12, top_k=1, seed=4),
    Request(prompt=b"ab", max_tokens=9, temperature=0.0),
]


def test_a_sampled_text_does_not_depend_on_its_company(exact: GPT) -> None:
    plays = [
        play(exact, [Visit(r, comes=n * gap) for n, r in enumerate(SAMPLED)], max_running=running)
        for gap, running in [(0, 5), (3, 5), (0, 2), (0, 1)]
    ]
    assert all(made.texts == plays[0].texts for made in plays)
    other = [replace(request, seed=request.seed + 100) for request in SAMPLED]
    again = play(exact, [Visit(r, comes=0) for r in other])
    assert again.texts[1] != plays[0].texts[1]


def test_a_seed_gives_the_text_that_torch_s_own_sampler_gives(exact: GPT) -> None:
    story = play(exact, [Visit(request, comes=0) for request in SAMPLED])
    for request, text in zip(SAMPLED, story.texts, strict=True):
        asked = Generation(
            prompt=request.prompt,
            max_new_tokens=request.max_tokens,
            temperature=request.temperature,
            top_k=request.top_k,
            seed=request.seed,
        )
        assert generate(exact, [asked]) == [text]


def test_a_text_ends_before_its_stop(exact: GPT) -> None:
    request = Request(prompt=b"ab", max_tokens=20, temperature=0.0)
    whole = alone(exact, request)
    stop = whole[4:6]
    engine = Engine(exact)
    writing = engine.add(replace(request, stop=(stop,)))
    events = []
    while engine.is_busy:
        events += engine.step()
    assert b"".join(event.data for event in events) == whole[: whole.find(stop)]
    assert events[-1].reason == "stop"
    assert writing.written == whole.find(stop) + 2
    assert engine.pool.available == engine.pool.count
    (only,) = play(exact, [Visit(replace(request, stop=(b"not in it",)), comes=0)]).texts
    assert only == whole


def test_a_model_that_does_not_write_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size=300"):
        Engine(GPT(GPTConfig(vocab_size=300, n_layer=1, n_head=1, n_embd=4)))
