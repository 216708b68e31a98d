"""Prefill and decode on separate workers: two real prefill workers and a real decode worker behind Dynamo's
frontend. The KV cache is transferred by NIXL over TCP.

The tests share the processes and run in the order of the file.
"""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.free_port import free_port
from tests.worker.conftest import PATIENT, PERIOD, QUICK, TIMEOUT, WorkerProcess, stopped, wait
from tests.worker.two_workers import Client, Frontend
from vllmendpoint_api import Outcome, Stage, Verdict, names

pytestmark = pytest.mark.timeout(600)

PAYLOAD = {"payload": {"prompt": "hello world", "max_tokens": 4, "ignore_eos": True}}
CHECK = PATIENT | PAYLOAD
LEASE_SECONDS = 6
SHORT_LEASE = {
    "kv_connector": "NixlConnector",
    "kv_role": "kv_producer",
    "kv_connector_extra_config": {"kv_lease_duration": LEASE_SECONDS},
}
"""A connector of the user, which the worker keeps."""
TOKENS = 12
NOTES = " ".join(
    f"item {number} is a {thing}," for number, thing in enumerate(["stone", "river", "lamp"] * 12)
)


@dataclass(frozen=True, slots=True)
class Phases:
    prefill: WorkerProcess
    other: WorkerProcess
    """The second prefill worker, with SHORT_LEASE."""
    decode: WorkerProcess
    frontend: Frontend

    @property
    def workers(self) -> Sequence[WorkerProcess]:
        return self.prefill, self.other, self.decode

    def pinned(self, prefill: WorkerProcess) -> dict[str, str]:
        """Headers of a request to one prefill worker and the decode worker."""
        return {
            "x-dynamo-prefill-instance-id": prefill.report().instance_id,
            "x-dynamo-worker-instance-id": self.decode.report().instance_id,
        }

    def ask(self, prompt: str, *, stream: bool = False, tokens: int = TOKENS, **headers: str) -> Client:
        body = completion(prompt, tokens) | {"stream": stream}
        return Client(self.frontend.port, body, headers=headers).start()


def completion(prompt: str, tokens: int = TOKENS) -> dict[str, object]:
    return {
        "model": "toy", "prompt": prompt, "max_tokens": tokens, "temperature": 0.0, "ignore_eos": True,
    }  # fmt: skip


def side_channel() -> dict[str, str]:
    return {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port()),
        "UCX_NET_DEVICES": "lo",
    }


def memory_mib(worker: WorkerProcess) -> int:
    """Proportional set size of the worker and its children."""
    pids = [worker.pid, *(child.pid for child in worker.children())]
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(int(line.split()[1]) for text in texts for line in text.splitlines() if "Pss:" in line) // 1024


@pytest.fixture(scope="module")
def phases(tmp_path_factory: pytest.TempPathFactory, toy_model: Path) -> Iterator[Phases]:
    folder = tmp_path_factory.mktemp("phases")

    def create(name: str, mode: str, *arguments: str) -> WorkerProcess:
        environ = {"DYN_FILE_KV": str(folder / "discovery"), **side_channel()}
        given = ["--dtype", "float32", "--disaggregation-mode", mode, *arguments]
        return WorkerProcess(folder / name, toy_model, environ, given)

    prefill = create("prefill", "prefill", "--max-num-seqs", "4")
    other = create("other", "prefill", "--kv-transfer-config", json.dumps(SHORT_LEASE))
    decode = create("decode", "decode")
    with ExitStack() as stack:
        for worker in (prefill, other, decode):
            stack.callback(worker.stop)
            worker.settings(CHECK)
            worker.start()
        frontend = stack.enter_context(Frontend(folder, decode, {"DYN_MIGRATION_LIMIT": "3"}))
        for worker in (prefill, other, decode):
            worker.until_ready()
            seconds = time.monotonic() - worker.started_at
            print(f"{worker.folder.name}: ready after {seconds:.0f} s, PSS {memory_mib(worker)} MiB")
        frontend.wait_for_workers(3)
        found = Phases(prefill, other, decode, frontend)
        assert found.ask("hello").wait().is_complete  # the first transfer connects the workers
        yield found


@pytest.fixture(scope="module")
def expected(phases: Phases) -> Callable[[str], str]:
    """The text of one engine that runs both phases: the server on a prefill worker's own port."""

    def text(prompt: str) -> str:
        return Client(phases.other.ports["http"], completion(prompt)).start().wait().text

    return text


def metric(worker: WorkerProcess, name: str, label: str = "") -> float:
    lines = worker.request("http", "/metrics")[1].decode().splitlines()
    found = [line for line in lines if line.startswith(name + "{") and label in line]
    assert found, f"{name} {label} does not exist"
    return sum(float(line.rpartition(" ")[2]) for line in found)


def transferred(worker: WorkerProcess) -> float:
    """Tokens of prompts that the worker has read from prefill workers."""
    return metric(worker, "vllm:prompt_tokens_by_source_total", 'source="external_kv_transfer"')


def holds_blocks(worker: WorkerProcess) -> bool:
    return metric(worker, "vllm:kv_cache_usage_perc") > 0


@pytest.mark.parametrize("stream", [False, True])
def test_the_decode_worker_reads_the_kv_cache_of_the_prefill_worker(
    phases: Phases, expected: Callable[[str], str], stream: bool
) -> None:
    prompt = f"{stream}: {NOTES} and then?"
    read, computed = transferred(phases.decode), metric(phases.prefill, "vllm:prompt_tokens_total")
    began = time.monotonic()
    answer = phases.ask(prompt, stream=stream, **phases.pinned(phases.prefill)).wait()
    print(f"answered in {time.monotonic() - began:.2f} s")
    assert answer.is_complete
    assert answer.text == expected(prompt)
    tokens = transferred(phases.decode) - read
    assert tokens > 200
    assert metric(phases.prefill, "vllm:prompt_tokens_total") - computed >= tokens
    wait(lambda: not holds_blocks(phases.prefill), 10.0)


def test_each_worker_probes_its_own_engine_without_a_transfer(phases: Phases) -> None:
    read = transferred(phases.decode)
    for worker in phases.workers:
        probe = json.loads(worker.request("report", "/probe", {}, method="POST")[1])
        assert (probe["outcome"], probe["tokens"]) == (Outcome.COMPLETE, 4), worker.folder.name
        assert worker.report().verdict.state == Verdict.GENERATING
        assert not holds_blocks(worker)
    assert transferred(phases.decode) == read


def test_a_frontends_probe_runs_with_the_transfer_and_is_no_proof_of_life(phases: Phases) -> None:
    for worker in phases.workers:
        worker.apply(CHECK | {"periodSeconds": 300})
    for worker in phases.workers:  # no other probe follows
        worker.request("report", "/probe", {}, method="POST")
    time.sleep(1.0)
    proofs = [worker.report().verdict.last_proof_of_life for worker in (phases.prefill, phases.decode)]
    read = transferred(phases.decode)
    headers = phases.pinned(phases.prefill) | {names.PROBE_HEADER: "1"}
    answer = phases.ask(f"probe: {NOTES}", tokens=1, **headers).wait()
    assert answer.is_complete
    assert transferred(phases.decode) - read > 200
    time.sleep(0.5)
    assert [
        worker.report().verdict.last_proof_of_life for worker in (phases.prefill, phases.decode)
    ] == proofs
    assert phases.ask(f"user: {NOTES}", tokens=1, **phases.pinned(phases.prefill)).wait().is_complete
    for worker, proof in zip((phases.prefill, phases.decode), proofs, strict=True):
        worker.until(lambda report, proof=proof: report.verdict.last_proof_of_life != proof, 10.0)
    for worker in phases.workers:
        worker.apply(CHECK)


def test_kv_blocks_that_no_decode_worker_reads_are_freed(phases: Phases) -> None:
    headers = phases.pinned(phases.other)
    with stopped(phases.decode.engine_core()):
        phases.ask(f"abandoned: {NOTES}", **headers)
        wait(lambda: holds_blocks(phases.other), 10.0)
        began = time.monotonic()
        wait(lambda: not holds_blocks(phases.other), LEASE_SECONDS + 5)
        print(f"freed {time.monotonic() - began:.1f} s after the prefill")
        assert phases.other.report().verdict.state == Verdict.GENERATING
    phases.decode.until(lambda report: report.ready, 30.0)


def test_a_worker_for_one_phase_runs_both_for_clients_of_its_own_port(phases: Phases) -> None:
    """Parameters of a transfer would make the engine connect to any address."""
    params = {"do_remote_prefill": True, "remote_host": "192.0.2.1", "remote_port": 1, "tp_size": 1}
    params |= {"remote_engine_id": "x", "remote_request_id": "x", "remote_block_ids": [[1]]}
    for worker in phases.workers:
        body = completion("hello")
        status, answer = worker.request("http", "/v1/completions", body)
        assert (status, json.loads(answer)["usage"]["completion_tokens"]) == (200, TOKENS)
        status, answer = worker.request("http", "/v1/completions", body | {"kv_transfer_params": params})
        assert status == 400
        assert "kv_transfer_params is not accepted at this port" in answer.decode()
        body = {"model": "toy", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        assert worker.request("http", "/invocations", body)[0] == 200
        assert worker.request("http", "/invocations", body | {"kv_transfer_params": params})[0] == 400
        assert not holds_blocks(worker)


@pytest.mark.parametrize("frozen", ["prefill", "decode"])
def test_a_frozen_engine_is_stalled_and_the_other_phase_is_not(phases: Phases, frozen: str) -> None:
    worker: WorkerProcess = getattr(phases, frozen)
    for one in phases.workers:
        one.apply(QUICK | PAYLOAD)
    with stopped(worker.engine_core()) as began:
        clients = [phases.ask(f"{frozen} {number}: {NOTES}") for number in range(4)]
        worker.until(lambda report: report.verdict.state == Verdict.STALLED, 30.0)
        took = time.monotonic() - began
        print(f"{frozen}: SIGSTOP -> Stalled in {took:.1f} s")
        assert took < PERIOD + TIMEOUT + 1
        answers = [client.wait() for client in clients]
        took = time.monotonic() - began
        print(f"{frozen}: SIGSTOP -> {[answer.status for answer in answers]} in {took:.1f} s")
        for other in phases.workers:
            if other is not worker:
                assert other.report().verdict.state == Verdict.GENERATING
        if frozen == "prefill":  # the other prefill worker answers
            assert [answer for answer in answers if not answer.is_complete] == []
        else:
            assert {answer.status for answer in answers} == {503}
    worker.until(lambda report: report.ready, 30.0)
    wait(lambda: phases.ask(f"after {frozen}").wait().is_complete, 30.0)
    for one in phases.workers:
        one.apply(CHECK)


def answers_while(
    phases: Phases, name: str, expected: Callable[[str], str], event: Callable[[], None]
) -> None:
    """Requests before, during and after ``event``: each is answered completely, with the undisturbed text."""
    prompts = [f"{name} {number}: {NOTES}" for number in range(24)]
    clients: list[Client] = []
    for number, prompt in enumerate(prompts):
        clients.append(phases.ask(prompt, stream=number % 2 == 0))
        if number == 6:
            event()
        time.sleep(0.15)
    answers = [client.wait() for client in clients]
    assert [answer for answer in answers if not answer.is_complete] == []
    assert [answer.text for answer in answers] == [expected(prompt) for prompt in prompts]


def test_requests_continue_when_a_prefill_engine_dies(phases: Phases, expected: Callable[[str], str]) -> None:
    answers_while(phases, "died", expected, lambda: os.kill(phases.prefill.engine_core(), signal.SIGKILL))
    assert phases.prefill.exit_code(60.0) == 1
    phases.prefill.start()
    phases.prefill.until_ready()
    phases.frontend.wait_for_workers(3)


def test_requests_continue_while_a_prefill_worker_shuts_down(
    phases: Phases, expected: Callable[[str], str]
) -> None:
    answers_while(phases, "shutdown", expected, lambda: os.kill(phases.prefill.pid, signal.SIGTERM))
    assert phases.prefill.exit_code(60.0) == 0
    assert phases.ask("the other worker").wait().is_complete


def test_a_decode_worker_serves_alone_without_a_prefill_worker(
    phases: Phases, expected: Callable[[str], str]
) -> None:
    prompt = f"alone: {NOTES}"
    text, read = expected(prompt), transferred(phases.decode)
    os.kill(phases.other.pid, signal.SIGTERM)
    began = time.monotonic()
    wait(lambda: phases.ask(prompt).wait().is_complete, 60.0)
    print(f"SIGTERM -> served alone after {time.monotonic() - began:.1f} s")
    assert phases.other.exit_code(60.0) == 0
    answer = phases.ask(prompt).wait()
    assert (answer.is_complete, answer.text) == (True, text)
    assert transferred(phases.decode) == read


def test_a_side_channel_that_is_in_use_ends_the_start(
    tmp_path: Path, make_worker: Callable[..., WorkerProcess]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        environ = side_channel() | {"VLLM_NIXL_SIDE_CHANNEL_PORT": port}
        worker = make_worker(environ, ["--disaggregation-mode", "decode"])
        worker.start()
        began = time.monotonic()
        assert worker.exit_code(120.0) == 1
        print(f"ended after {time.monotonic() - began:.0f} s")
    assert f"NIXL's side channel cannot be bound to 127.0.0.1 port {port}" in worker.log()


def test_an_embedding_model_has_no_phases(tmp_path: Path, minilm: Path) -> None:
    arguments = ["--max-model-len", "256", "--disaggregation-mode", "prefill"]
    worker = WorkerProcess(tmp_path, minilm, side_channel(), arguments)
    worker.settings(CHECK)
    try:
        worker.start()
        worker.until(lambda report: report.stage.name == Stage.REJECTED, 120.0)
        (problem,) = worker.report().configuration.problems
        assert (problem.field, problem.reason) == ("prefill", "InvalidSettings")
        assert "Remove spec.prefill." in problem.message
    finally:
        worker.stop()
