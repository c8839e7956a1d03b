"""Clients of the OpenAI-compatible API: they ask beside each other, and leave in the middle."""

from __future__ import annotations

import http.client
import json
import re
from typing import Any

import requests
import torch
from support import wait_for

from rayburst.train.gpt import GPT


def prompt(n: int) -> str:
    return f"def f{n}(x):" + " " * (n % 30)


def beside_each_other(url: str, n: int) -> str:
    """The greedy text of request `n`; every second one is streamed."""
    asked = {"prompt": prompt(n), "max_tokens": 4 + 2 * n, "temperature": 0, "model": "demo"}
    answer = requests.post(
        f"{url}/v1/completions", json={**asked, "stream": n % 2 == 1}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    if n % 2 == 0:
        return str(answer.json()["choices"][0]["text"])
    events = [event.removeprefix("data: ") for event in answer.text.split("\n\n") if event]
    assert events[-1] == "[DONE]"
    return "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])


def whole_texts(model: GPT, number: int) -> list[str]:
    """What the model's own loop writes for each of `number` requests."""
    texts = []
    for n in range(number):
        idx = torch.tensor([list(prompt(n).encode())])
        made = model.generate(idx, 4 + 2 * n, temperature=0.0)
        texts.append(bytes(made[0, idx.shape[1] :].tolist()).decode(errors="replace"))
    return texts


def gauges(url: str) -> dict[str, float]:
    """The engine's figures."""
    page = requests.get(f"{url}/metrics", timeout=30).text
    found = re.findall(r"^rayburst_generate_(\w+) (\S+)$", page, re.M)
    return {name: float(value) for name, value in found}


def leaves_in_the_middle(url: str, *, stream: bool) -> None:
    """A client closes its connection while its texts are written; asserts what becomes of them."""
    before = gauges(url)["tokens"]
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=60)
    # Longer than the model's context by far: every token is a whole pass, so it takes its time.
    body = {"prompt": ["ab", "cd"] * 8, "max_tokens": 1024, "stream": stream}
    connection.request(
        "POST", f"/{path}/v1/completions".replace("//", "/"), body=json.dumps(body),
        headers={"content-type": "application/json"},
    )  # fmt: skip
    if stream:
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.readline().startswith(b"data: ")
    running = wait_for(
        lambda: gauges(url)["running"] or None, what="its texts are written", timeout_s=30
    )
    assert running > 0
    connection.close()
    if stream:
        answer.close()

    def free() -> Any:
        now = gauges(url)
        is_free = now["running"] == now["waiting"] == 0 and now["blocks_free"] == now["blocks"]
        return now if is_free else None

    after = wait_for(free, what="its places and blocks are free", timeout_s=30)
    assert after["tokens"] - before < 16 * 1024
