"""KV-aware routing against round-robin: time to first token with shared prefixes, and where sessions stay.

Two workers with SmolLM2-135M on CPU, in front of them one frontend of each mode, in the same run. The
prefixes fit into the KV caches of both workers together, and not into that of one. The modes take turns,
each time with new prefixes.
"""

import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.free_port import free_port
from tests.worker.conftest import ROOT, WorkerProcess
from tests.worker.frontend_process import PREFIX, FrontendProcess
from vllmendpoint_api import KVEventsState, RoutingMode, RoutingSpec, names
from vllmendpoint_operator.plan.pods.routing import KV_EVENT_ARGUMENTS, router_env

pytestmark = pytest.mark.timeout(2400)
MODEL: Final = "smollm"
MODES: Final = (RoutingMode.ROUND_ROBIN, RoutingMode.KV)
TURNS: Final = 2
PREFIXES: Final = 6
ROUNDS: Final = 3
WORDS: Final = 820
"""Of a prefix: 7 KV blocks of 128 tokens. A cache has 28 blocks."""
CACHE_BYTES: Final = 160 * 1024 * 1024
SESSIONS: Final = 4
QUESTIONS: Final = 4
VOCABULARY: Final = ("time", "year", "people", "way", "day", "thing", "life", "child", "world", "school")


class Answer(NamedTuple):
    seconds: float
    """Time to the first token."""
    worker: str
    prompt_tokens: int
    cached_tokens: int
    text: str


class Served(NamedTuple):
    frontends: dict[RoutingMode, FrontendProcess]
    workers: list[WorkerProcess]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    cache = Path(os.environ.get("VLLMENDPOINT_CACHE") or Path.home() / ".cache" / "vllmendpoint")
    model = cache / "models" / "SmolLM2-135M-Instruct"
    command = [sys.executable, str(ROOT / "hack" / "model.py"), "chat", str(model)]
    subprocess.run(command, timeout=600, check=True)
    folder = tmp_path_factory.mktemp("kv")
    environ = {"DYN_FILE_KV": str(folder / "discovery"), "DYN_NAMESPACE": f"{PREFIX}r1"}
    engine = ["--served-model-name", MODEL, "--dtype", "float32", "--kv-cache-memory-bytes", str(CACHE_BYTES)]
    workers: list[WorkerProcess] = []
    frontends: dict[RoutingMode, FrontendProcess] = {}
    health_check = {"periodSeconds": 60, "timeoutSeconds": 30}
    try:
        for _ in range(2):
            option, config = KV_EVENT_ARGUMENTS
            events = config.replace(str(names.KV_EVENTS_PORT), str(free_port()))
            worker_folder = tmp_path_factory.mktemp("worker")
            worker = WorkerProcess(worker_folder, model, environ, [*engine, option, events])
            workers.append(worker)
            worker.settings(health_check)
            worker.start()
            worker.until_ready()
        for mode in MODES:
            env = router_env(RoutingSpec(mode=mode))
            frontends[mode] = FrontendProcess(folder, health_check, name=mode.value, **env)
            frontends[mode].start()
        frontends[RoutingMode.ROUND_ROBIN].until(lambda report: len(answered(report)) == 2, 120.0)
        frontends[RoutingMode.KV].until(lambda report: len(received(report)) == 2, 120.0)
        yield Served(frontends, workers)
    finally:
        for frontend in frontends.values():
            frontend.stop()
        for worker in workers:
            worker.stop()


def answered(report: Any) -> list[Any]:
    return [route for route in report.routes if route.last_answer is not None]


def received(report: Any) -> list[Any]:
    events = [route.kv_events for route in report.routes if route.kv_events is not None]
    return [found for found in events if found.state == KVEventsState.RECEIVED]


def ask(frontend: FrontendProcess, prompt: str, max_tokens: int = 1) -> Answer:
    """One streamed completion."""
    body = {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "nvext": {"extra_fields": ["worker_id"]},
    }
    began, first, worker, text = time.monotonic(), None, "", ""
    usage: dict[str, Any] = {}
    connection = http.client.HTTPConnection("127.0.0.1", frontend.port, timeout=300)
    with closing(connection):
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk.get("choices"):
                first = first or time.monotonic() - began
                text += chunk["choices"][0].get("text") or ""
            worker = worker or str(
                ((chunk.get("nvext") or {}).get("worker_id") or {}).get("decode_worker_id") or ""
            )
            usage = chunk.get("usage") or usage
    assert first is not None
    assert worker
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Answer(first, worker, usage["prompt_tokens"], cached, text)


def test_prefixes_are_computed_once_and_the_first_token_arrives_earlier(served: Served) -> None:
    chosen = random.Random(1)
    results: dict[RoutingMode, list[Answer]] = {mode: [] for mode in MODES}
    for _ in range(TURNS):
        for mode in MODES:
            prefixes = [" ".join(chosen.choices(VOCABULARY, k=WORDS)) for _ in range(PREFIXES)]
            for number in range(ROUNDS):
                for prefix in chosen.sample(prefixes, PREFIXES):
                    answer = ask(served.frontends[mode], f"{prefix} question {chosen.random()}")
                    if number:  # the first round computes every prefix
                        results[mode].append(answer)
    medians = {}
    for mode, answers in results.items():
        seconds = sorted(answer.seconds for answer in answers)
        medians[mode] = statistics.median(seconds)
        cached = sum(answer.cached_tokens for answer in answers)
        total = sum(answer.prompt_tokens for answer in answers)
        print(
            f"\n{mode}: {len(answers)} requests of {total // len(answers)} tokens: time to first token "
            f"median {medians[mode]:.2f} s, 90% {seconds[int(len(seconds) * 0.9)]:.2f} s, maximum "
            f"{seconds[-1]:.2f} s; {100 * cached / total:.0f}% of the tokens from the cache"
        )
    assert medians[RoutingMode.KV] < 0.7 * medians[RoutingMode.ROUND_ROBIN]


def test_a_session_stays_where_its_cache_is(served: Served) -> None:
    """Each question of a conversation contains all earlier ones with their answers."""
    chosen = random.Random(2)
    for mode in MODES:
        frontend = served.frontends[mode]
        texts = [" ".join(chosen.choices(VOCABULARY, k=300)) for _ in range(SESSIONS)]
        homes, stayed, cached, total = [""] * SESSIONS, 0, 0, 0
        for question in range(QUESTIONS):
            for session in chosen.sample(range(SESSIONS), SESSIONS):
                answer = ask(frontend, texts[session], max_tokens=4)
                if question:
                    stayed += answer.worker == homes[session]
                    cached += answer.cached_tokens
                    total += answer.prompt_tokens
                homes[session] = answer.worker
                texts[session] += answer.text + " " + " ".join(chosen.choices(VOCABULARY, k=120))
        turns = SESSIONS * (QUESTIONS - 1)
        print(
            f"\n{mode}: {stayed} of {turns} questions reached the worker of the previous one; "
            f"{100 * cached / total:.0f}% of the tokens from the cache"
        )
        if mode is RoutingMode.KV:
            assert stayed == turns
