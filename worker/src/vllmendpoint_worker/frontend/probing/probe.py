"""One probe: a small request through the frontend's own HTTP server to one worker.

Measured on Dynamo 1.6.1: a worker is addressed by a header for chat and completions. If the router has drawn
another worker set, or does not know the worker, the response is 400. A form that the model does not serve is
404. A chat template that rejects the conversation is 400 too, so the other forms are tried before the worker
counts as unknown.

For embeddings, classes and pooled vectors the router ignores the header, and any worker may answer. A worker
sets the field ``model`` of its answer to such a probe to its instance ID, and the frontend repeats the probe
until the right worker has answered. If the field is the model's name, the answer counts as the right one.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

from vllmendpoint_api import ModelType, names
from vllmendpoint_worker.frontend.http_client import HttpResponse
from vllmendpoint_worker.process.clock import Clock

from .routes import ProbeEnd, RouteOutcome

__all__ = [
    "PREFILL_HEADER",
    "RANK_HEADER",
    "WORKER_HEADER",
    "Client",
    "Probe",
    "RequestForm",
    "forms_to_try",
    "run_probe",
]

WORKER_HEADER: Final = "x-dynamo-worker-instance-id"
"""The value is the instance ID in decimal. Dynamo ignores other forms."""

PREFILL_HEADER: Final = "x-dynamo-prefill-instance-id"
"""Selects the prefill worker, together with :data:`WORKER_HEADER`."""

RANK_HEADER: Final = "x-dynamo-dp-rank"
"""Data-parallel rank of the worker. With KV-aware routing, a request to a worker with several ranks gets 500
without it."""

MAX_MESSAGE: Final = 300

HEDGE_SECONDS: Final = 0.5
"""If any worker may receive the probe, the next attempt starts after this time, even without a response,
because another worker may hang."""


class Client(Protocol):
    """The methods of :class:`.http_client.HttpClient`."""

    async def get(self, path: str, timeout: float) -> HttpResponse: ...  # noqa: ASYNC109

    async def post(
        self,
        path: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str],
        timeout: float,  # noqa: ASYNC109
    ) -> HttpResponse: ...


class RequestForm(StrEnum):
    """Paths of Dynamo's HTTP server, in the order in which they are tried."""

    CHAT = "/v1/chat/completions"
    COMPLETION = "/v1/completions"
    EMBEDDING = "/v1/embeddings"
    CLASSIFY = "/v1/classify"
    POOLING = "/v1/pooling"


_GENERATES: Final = frozenset({RequestForm.CHAT, RequestForm.COMPLETION})

_OF_TYPE: Final[Mapping[ModelType, RequestForm]] = {
    ModelType.CHAT: RequestForm.CHAT,
    ModelType.COMPLETION: RequestForm.COMPLETION,
    ModelType.EMBEDDING: RequestForm.EMBEDDING,
    ModelType.CLASSIFY: RequestForm.CLASSIFY,
    ModelType.POOLING: RequestForm.POOLING,
}


def forms_to_try(model_type: ModelType | None, last_answered: RequestForm | None) -> list[RequestForm]:
    """``last_answered`` first, or else the form of the declared type."""
    first = last_answered or (None if model_type is None else _OF_TYPE.get(model_type))
    return sorted(RequestForm, key=lambda form: form is not first)


@dataclass(frozen=True, slots=True)
class Probe:
    """``attempts``: number of requests after which the router certainly does not find the worker, with the
    worker's header and, in forms for which the router ignores it, without. ``answers_first``: the first form
    has been answered before, so an error is not caused by the form.
    """

    model: str
    instance_id: int
    forms: Sequence[RequestForm]
    attempts: int
    attempts_without_header: int
    timeout: float
    answers_first: bool = False
    prefill_id: int | None = None
    """The prefill worker of a pair; ``instance_id`` is its decode worker. The prompt is new then, because
    a decode worker reads no KV cache of a prompt that is in its own prefix cache."""
    kv_routing: bool = False
    """The router selects a data-parallel rank, too. The responses contain the KV hit rate."""


async def run_probe(
    client: Client, probe: Probe, clock: Clock, on_response: Callable[[Any], None] = lambda _: None
) -> tuple[ProbeEnd, RequestForm | None]:
    """Send the probe and read the whole response. Returns the form that was answered, or None.

    ``on_response`` receives the JSON of a generated answer.
    """
    started = clock.monotonic()

    def end(outcome: RouteOutcome, message: str = "") -> ProbeEnd:
        return ProbeEnd(started, clock.monotonic(), outcome, message)

    failure: tuple[RouteOutcome, str] | None = None
    try:
        for form in probe.forms:
            send = _send_to_worker if form in _GENERATES else _send_to_any
            response = await send(client, probe, form, lambda: started + probe.timeout - clock.monotonic())
            outcome, fault = _result(probe, form, response)
            if outcome is RouteOutcome.ANSWERED:
                if form in _GENERATES and response is not None:
                    on_response(response.json())
                return end(outcome), form
            failure = failure or (None if outcome is None else (outcome, fault))
            if outcome is RouteOutcome.FAILED and probe.answers_first:
                break
    except TimeoutError:
        fault = f"The worker has not responded to the frontend's probe within {probe.timeout:g} s."
        return end(RouteOutcome.FAILED, fault), None
    except (OSError, ValueError) as error:
        fault = f"The frontend's HTTP server has not responded to the probe: {type(error).__name__}."
        return end(RouteOutcome.FAILED, fault), None
    if failure is not None:
        return end(*failure), None
    return end(RouteOutcome.FAILED, f"The frontend does not serve the model {probe.model[:128]}."), None


def _result(
    probe: Probe, form: RequestForm, response: HttpResponse | None
) -> tuple[RouteOutcome | None, str]:
    """The outcome and the fault as a sentence. None if the model does not have the form."""
    if response is None:
        return RouteOutcome.REFUSED, _OTHERS_ANSWERED
    if response.status == 404:
        return None, ""
    if response.status == 400:
        return RouteOutcome.REFUSED, _refusal(response, probe)
    fault = _fault(form, response)
    return (RouteOutcome.FAILED, fault) if fault else (RouteOutcome.ANSWERED, "")


async def _send_to_worker(
    client: Client, probe: Probe, form: RequestForm, seconds_left: Callable[[], float]
) -> HttpResponse:
    """Send the request until the router has drawn the worker's set. Raises as :meth:`.HttpClient.get`."""
    headers = {names.PROBE_HEADER: "1", WORKER_HEADER: str(probe.instance_id)}
    body = _body(form, probe)
    if probe.prefill_id is not None:
        headers[PREFILL_HEADER] = str(probe.prefill_id)
    if probe.kv_routing:
        headers[RANK_HEADER] = "0"
        body["nvext"] = {"extra_fields": ["timing"]}
    response = await client.post(form, body, headers, seconds_left())
    for _ in range(probe.attempts - 1):
        if response.status != 400 or seconds_left() <= 0.0:
            break
        response = await client.post(form, body, headers, seconds_left())
    return response


async def _send_to_any(
    client: Client, probe: Probe, form: RequestForm, seconds_left: Callable[[], float]
) -> HttpResponse | None:
    """Send the request until the worker has answered, or the model has no such form (404).

    Otherwise, return the last error, or None if only other workers have answered. Raises as
    :meth:`.HttpClient.get`.
    """
    body, headers = _body(form, probe), {names.PROBE_HEADER: "1"}
    running: set[asyncio.Task[HttpResponse]] = set()
    attempts, last_error = 0, None
    try:
        while (more := attempts < probe.attempts_without_header) or running:
            if (left := seconds_left()) <= 0.0:
                raise TimeoutError
            if more:
                attempts += 1
                running.add(asyncio.create_task(client.post(form, body, headers, left), name="probe-any"))
            done, running = await asyncio.wait(
                running,
                timeout=min(left, HEDGE_SECONDS) if more else left,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for response in [task.result() for task in done]:
                if response.status == 404 or (response.status == 200 and _is_from(response, probe)):
                    return response
                if response.status != 200:
                    last_error = response
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return last_error


def _is_from(response: HttpResponse, probe: Probe) -> bool:
    """Whether the probed worker has answered, or a worker that does not identify itself."""
    body = response.json()
    name = body.get("model") if isinstance(body, dict) else None
    is_id = isinstance(name, str) and name.isdecimal() and name != probe.model
    return not is_id or name == str(probe.instance_id)


def _body(form: RequestForm, probe: Probe) -> dict[str, Any]:
    model = probe.model
    new = "" if probe.prefill_id is None else f" {secrets.token_hex(4)}"
    if form is RequestForm.CHAT:
        return {"model": model, "messages": [{"role": "user", "content": f"Hi{new}"}], "max_tokens": 1}
    if form is RequestForm.COMPLETION:
        return {"model": model, "prompt": f"1{new}", "max_tokens": 1}
    return {"model": model, "input": "test"}


_OTHERS_ANSWERED: Final = (
    "The frontend's router does not send requests to the worker: other workers have answered all probes."
)


def _refusal(response: HttpResponse, probe: Probe) -> str:
    times = f"all {probe.attempts} probes" if probe.attempts > 1 else "the probe"
    return f"The frontend's router does not send requests to the worker: {times} got {_described(response)}."


def _fault(form: RequestForm, response: HttpResponse) -> str:
    """Why the response is not a complete answer, as a sentence, or ""."""
    if response.status != 200:
        return f"The frontend's HTTP server responded to the probe with {_described(response)}."
    body = response.json()
    rows = body.get("choices" if form in _GENERATES else "data") if isinstance(body, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return "The frontend's HTTP server responded to the probe with 200 and without a result."
    if form in _GENERATES and not all(row.get("finish_reason") for row in rows):
        return "The response to the frontend's probe has no finish reason: the stream of tokens broke off."
    if form is RequestForm.EMBEDDING and not all(row.get("embedding") for row in rows):
        return "The response to the frontend's probe contains no embedding."
    return ""


def _described(response: HttpResponse) -> str:
    """Status and message. The request is the frontend's own, so the message has no content of a client."""
    body = response.json()
    text = body.get("message") if isinstance(body, dict) else None
    if not isinstance(text, str) or not text.strip():
        return str(response.status)
    line = " ".join(text.split())[:MAX_MESSAGE].rstrip(".")
    return f'{response.status} ("{line}")'
