"""Requests in flight move to another worker when the engine freezes, dies or shuts down, without an error and
without a lost token. Two real workers, of which one is slow, behind Dynamo's frontend.

The tests share the processes and run in the order of the file.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from vllmendpoint_api import Verdict, names

from .conftest import QUICK, WorkerProcess, stopped, wait
from .two_workers import Client, Frontend, slow_worker

pytestmark = pytest.mark.timeout(300)

CHECK = QUICK | {"periodSeconds": 60}
STEP_SECONDS = 0.1
TOKENS = 400
PROMPTS = ["hello", "the sky is blue", "one two three", "a", "water is wet", "what is the time"]


@dataclass(frozen=True, slots=True)
class Pair:
    slow: WorkerProcess
    fast: WorkerProcess
    frontend: Frontend

    def clients(self, tokens: int = TOKENS) -> list[Client]:
        """Three streaming and three other clients."""
        return [
            Client(self.frontend.port, completion(prompt, tokens) | {"stream": index % 2 == 0})
            for index, prompt in enumerate(PROMPTS)
        ]


def completion(prompt: str, tokens: int) -> dict[str, object]:
    return {
        "model": "toy", "prompt": prompt, "max_tokens": tokens, "temperature": 0.0, "ignore_eos": True,
    }  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, toy_model: Path) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    slow = slow_worker(folder / "slow", toy_model, folder / "discovery", STEP_SECONDS)
    fast = slow_worker(folder / "fast", toy_model, folder / "discovery", 0.0)
    with ExitStack() as stack:
        for worker in (slow, fast):
            stack.callback(worker.stop)
            worker.settings(CHECK)
            worker.start()
        frontend = stack.enter_context(Frontend(folder, fast, {"DYN_MIGRATION_LIMIT": "3"}))
        for worker in (slow, fast):
            worker.until_ready()
        frontend.wait_for_workers(2)
        yield Pair(slow, fast, frontend)


@pytest.fixture(scope="module")
def undisturbed(pair: Pair) -> list[str]:
    """The texts of the fast worker, one request after the other."""
    return [
        Client(pair.fast.ports["http"], completion(prompt, TOKENS)).start().wait().text for prompt in PROMPTS
    ]


def metric(worker: WorkerProcess, name: str) -> float:
    lines = worker.request("http", "/metrics")[1].decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


def tokens(pair: Pair) -> list[float]:
    """Tokens that the engines have generated."""
    return [metric(worker, "vllm:generation_tokens_total") for worker in (pair.slow, pair.fast)]


def running(worker: WorkerProcess) -> float:
    return metric(worker, "vllm:num_requests_running") + metric(worker, "vllm:num_requests_waiting")


def start_all(pair: Pair) -> list[Client]:
    """Clients whose requests are in flight; at least one streaming and one other at the slow worker."""
    clients = [client.start() for client in pair.clients()]
    wait(lambda: running(pair.slow) == 3, 10.0)
    time.sleep(10 * STEP_SECONDS)
    return clients


def assert_undisturbed(clients: list[Client], undisturbed: list[str]) -> None:
    answers = [client.wait() for client in clients]
    assert [answer for answer in answers if not answer.is_complete] == []
    assert [answer.text for answer in answers] == undisturbed
    assert {answer.finish_reason for answer in answers} == {"length"}


def probe_of_a_frontend(
    pair: Pair, path: str = "/v1/completions", *, stream: bool = False, expected: int = 200
) -> Client:
    """A marked request to the slow worker. During a rollout, a pinned request may have to be repeated."""
    body: dict[str, object] = {"model": "toy", "max_tokens": 1, "stream": stream}
    body |= {"messages": [{"role": "user", "content": "x"}]} if "chat" in path else {"prompt": "x"}
    headers = {
        "x-dynamo-worker-instance-id": pair.slow.report().instance_id,
        names.PROBE_HEADER: "1",
    }
    client = Client(pair.frontend.port, body, path, headers).start()
    assert client.wait(10.0).status == expected, (client.answer, client.raw)
    return client


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_frontends_probe_is_answered_with_the_last_probe(pair: Pair, path: str, stream: bool) -> None:
    pair.slow.request("report", "/probe", {}, method="POST")
    before = tokens(pair)
    for _ in range(3):
        client = probe_of_a_frontend(pair, path, stream=stream)
        assert client.answer.is_complete, (client.answer, client.raw)
        assert client.answer.text
    assert tokens(pair) == before


def test_requests_move_from_a_frozen_engine_without_a_lost_token(pair: Pair, undisturbed: list[str]) -> None:
    clients = start_all(pair)
    with stopped(pair.slow.engine_core()):
        began = time.monotonic()
        assert_undisturbed(clients, undisturbed)
        print(f"moved and complete {time.monotonic() - began:.1f} s after SIGSTOP")
        assert pair.slow.report().verdict.state == Verdict.STALLED
        began = time.monotonic()
        probe_of_a_frontend(pair, expected=500)
        assert time.monotonic() - began < 1.0
    pair.slow.until(lambda report: report.ready, 30.0)
    wait(lambda: running(pair.slow) == 0, 10.0)


def test_a_recovered_worker_receives_requests_again(pair: Pair) -> None:
    began = time.monotonic()

    def received() -> bool:
        before = metric(pair.slow, "vllm:generation_tokens_total")
        for _ in range(2):
            Client(pair.frontend.port, completion("hello", 20)).start().wait()
        return metric(pair.slow, "vllm:generation_tokens_total") - before >= 20

    wait(received, 30.0)
    print(f"requests again after {time.monotonic() - began:.1f} s")


def test_requests_on_the_workers_own_port_end_while_the_engine_is_frozen(pair: Pair) -> None:
    port = pair.slow.ports["http"]
    body = completion("hello", TOKENS)
    chat = {"model": "toy", "messages": [{"role": "user", "content": "x"}], "max_tokens": TOKENS}
    chat |= {"ignore_eos": True, "temperature": 0.0}
    clients = [
        Client(port, body),
        Client(port, body | {"stream": True}),
        Client(port, chat, "/v1/chat/completions"),
        Client(port, chat | {"stream": True}, "/v1/chat/completions"),
        Client(port, chat | {"stream": True}, "/invocations"),
    ]
    for client in clients:
        client.start()
    wait(lambda: running(pair.slow) == len(clients), 10.0)
    wait(lambda: all(client.answer.chunks for client in clients if client.body.get("stream")), 10.0)
    with stopped(pair.slow.engine_core()):
        for client in clients:
            answer = client.wait(20.0)
            assert answer.status == (200 if client.body.get("stream") else 503), answer
            assert "verdict Stalled" in client.raw.decode()
            assert b"[DONE]" not in client.raw
            assert answer.finish_reason is None
            if client.body.get("stream"):
                assert client.closed_early, "the client must not take the answer for complete"
        began = time.monotonic()
        status, error = pair.slow.request("http", "/v1/completions", body)
        assert (status, json.loads(error)["error"]["code"]) == (503, 503)
        assert time.monotonic() - began < 1.0
        for path in ("/metrics", "/v1/models", "/version", "/load"):
            assert pair.slow.status("http", path) == 200, path
        assert pair.slow.request("http", "/tokenize", {"model": "toy", "prompt": "x"})[0] == 200
        assert pair.slow.status("http", "/ping") == 503
    pair.slow.until(lambda report: report.ready, 30.0)
    wait(lambda: running(pair.slow) == 0, 10.0)
    assert pair.slow.request("http", "/v1/completions", completion("x", 2))[0] == 200


def test_requests_move_from_a_dead_engine_without_a_lost_token(pair: Pair, undisturbed: list[str]) -> None:
    clients = start_all(pair)
    os.kill(pair.slow.engine_core(), signal.SIGKILL)
    assert_undisturbed(clients, undisturbed)
    assert pair.slow.exit_code(20.0) == 1
    assert "EngineDeadError" in "".join(pair.slow.log_lines())


def test_requests_move_at_the_end_of_the_drain_without_a_lost_token(
    pair: Pair, undisturbed: list[str]
) -> None:
    pair.slow.start()
    pair.slow.until_ready()
    pair.frontend.wait_for_workers(2)
    clients = start_all(pair)
    began = time.monotonic()
    os.kill(pair.slow.pid, signal.SIGTERM)
    assert_undisturbed(clients, undisturbed)
    assert time.monotonic() - began > 20.0, "the worker continued its requests until then"
    assert pair.slow.exit_code(20.0) == 0
