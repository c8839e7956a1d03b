"""The story that the demo tells: never silent for long, and an act that fails is not recorded."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from rayburst.dev import story as stories
from rayburst.dev.story import Story
from rayburst.errors import DemoError


@pytest.fixture
def told(monkeypatch) -> tuple[Story, io.StringIO]:
    monkeypatch.setattr(stories, "_SAY_EVERY_S", 0.0)
    out = io.StringIO()
    return Story(Console(file=out, width=120), started=0.0), out


def test_waiting_says_what_for_and_where_things_stand(told):
    story, out = told
    story.where = lambda: " (2 spot up)"
    answers = iter([None, None, "there"])
    assert story.wait("a node", lambda: next(answers), timeout_s=60) == "there"
    assert "waiting for a node (2 spot up)" in out.getvalue()


def test_waiting_in_vain_names_what_did_not_come(told):
    story, _ = told
    with pytest.raises(DemoError, match="a node: not within 0 s"):
        story.wait("a node", lambda: None, timeout_s=0)


def test_a_call_that_blocks_is_accompanied(told):
    story, out = told
    seen = threading.Event()
    write = out.write
    out.write = lambda text: (write(text), seen.set())[0]
    with story.meanwhile("the model"):
        assert seen.wait(60), "nothing was said"
    assert "waiting for the model" in out.getvalue()
    assert not [t for t in threading.enumerate() if t.name == "story"]


def test_an_act_that_fails_is_not_among_the_phases(told):
    story, _ = told
    with story.act("One"):
        pass
    with pytest.raises(DemoError), story.act("Two"):
        raise DemoError("no")
    assert [phase["name"] for phase in story.phases] == ["One"]
