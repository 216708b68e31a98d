"""One probe: which requests it sends, and how it counts the responses."""

import asyncio
from typing import Any

import pytest

from tests.unit.worker.fake_frontend import FakeFrontend, FakeWorker
from tests.unit.worker.virtual_time import LoopClock, on_virtual_time
from vllmendpoint_api import ModelType
from vllmendpoint_worker.frontend.http_client import HttpResponse
from vllmendpoint_worker.frontend.probing.probe import Probe, RequestForm, forms_to_try, run_probe
from vllmendpoint_worker.frontend.probing.routes import RouteOutcome

CHAT, COMPLETION, EMBEDDING = RequestForm.CHAT, RequestForm.COMPLETION, RequestForm.EMBEDDING


def probe(instance_id: int = 1, **changes: Any) -> Probe:
    given: dict[str, Any] = {
        "model": "m",
        "forms": list(RequestForm),
        "attempts": 3,
        "attempts_without_header": 6,
        "timeout": 2.0,
    }
    return Probe(instance_id=instance_id, **(given | changes))


@pytest.mark.parametrize(
    ("model_type", "last", "first", "count"),
    [
        (None, None, CHAT, 5),
        (None, EMBEDDING, EMBEDDING, 5),
        (ModelType.COMPLETION, None, COMPLETION, 5),
        (ModelType.COMPLETION, CHAT, CHAT, 5),
        (ModelType.EMBEDDING, None, EMBEDDING, 5),
        (ModelType.SCORE, None, CHAT, 5),
    ],
)
def test_the_form_that_was_answered_is_first(
    model_type: ModelType | None, last: RequestForm | None, first: RequestForm, count: int
) -> None:
    forms = forms_to_try(model_type, last)
    assert (forms[0], len(forms), len(set(forms))) == (first, count, count)


@pytest.mark.parametrize("form", [CHAT, COMPLETION, EMBEDDING])
@on_virtual_time
async def test_forms_that_the_model_does_not_have_are_skipped(form: RequestForm) -> None:
    frontend = FakeFrontend({1: FakeWorker()}, forms=(form,))
    end, answered = await run_probe(frontend, probe(), LoopClock())
    assert (end.outcome, end.message, answered) == (RouteOutcome.ANSWERED, "", form)
    assert [path for path, _ in frontend.posts] == list(RequestForm)[: list(RequestForm).index(form) + 1]


@pytest.mark.parametrize(
    ("behaviour", "outcome", "message"),
    [
        ("answer", RouteOutcome.ANSWERED, ""),
        ("unknown", RouteOutcome.REFUSED, 'all 3 probes got 400 ("Invalid request")'),
        ("error", RouteOutcome.FAILED, 'with 503 ("The engine is stalled").'),
        ("hang", RouteOutcome.FAILED, "has not responded to the frontend's probe within 2 s."),
        ("no-end", RouteOutcome.FAILED, "no finish reason"),
    ],
)
@on_virtual_time
async def test_the_outcome_follows_the_response(behaviour: str, outcome: RouteOutcome, message: str) -> None:
    frontend = FakeFrontend({1: FakeWorker(behaviour=behaviour)})
    end, _ = await run_probe(frontend, probe(forms=[COMPLETION]), LoopClock())
    assert end.outcome is outcome
    assert message in end.message
    assert end.ended - end.started == (2.0 if behaviour == "hang" else 0.0)


@on_virtual_time
async def test_the_request_is_repeated_until_the_workers_set_is_drawn() -> None:
    frontend = FakeFrontend({1: FakeWorker()}, sets=[False, False, True])
    end, _ = await run_probe(frontend, probe(forms=[COMPLETION]), LoopClock())
    assert (end.outcome, len(frontend.posts)) == (RouteOutcome.ANSWERED, 3)
    assert {header for _, header in frontend.posts} == {"1"}


@on_virtual_time
async def test_a_model_without_any_form_is_a_failure() -> None:
    frontend = FakeFrontend({1: FakeWorker()}, forms=())
    end, answered = await run_probe(frontend, probe(), LoopClock())
    assert (end.outcome, answered) == (RouteOutcome.FAILED, None)
    assert end.message == "The frontend does not serve the model m."


@pytest.mark.parametrize(
    ("status", "answers_first", "outcome", "paths"),
    [
        (400, False, RouteOutcome.ANSWERED, [CHAT, CHAT, CHAT, COMPLETION]),
        (400, True, RouteOutcome.ANSWERED, [CHAT, CHAT, CHAT, COMPLETION]),
        (500, False, RouteOutcome.ANSWERED, [CHAT, COMPLETION]),
        (500, True, RouteOutcome.FAILED, [CHAT]),
    ],
)
@on_virtual_time
async def test_a_chat_template_that_rejects_the_probe_does_not_hide_the_worker(
    status: int, answers_first: bool, outcome: RouteOutcome, paths: list[RequestForm]
) -> None:
    class Rejecting(FakeFrontend):
        async def post(self, path: str, *args: Any) -> HttpResponse:
            response = await super().post(path, *args)
            return HttpResponse(status, b"{}") if path == CHAT else response

    frontend = Rejecting({1: FakeWorker()}, forms=(CHAT, COMPLETION))
    end, form = await run_probe(frontend, probe(answers_first=answers_first), LoopClock())
    assert (end.outcome, [path for path, _ in frontend.posts]) == (outcome, paths)
    assert form is (COMPLETION if outcome is RouteOutcome.ANSWERED else None)


@pytest.mark.parametrize("error", [ConnectionRefusedError(), ValueError("not HTTP")])
@on_virtual_time
async def test_a_server_that_does_not_respond_is_a_failure(error: Exception) -> None:
    class Broken(FakeFrontend):
        async def post(self, *args: Any) -> HttpResponse:
            raise error

    end, _ = await run_probe(Broken(), probe(), LoopClock())
    assert end.outcome is RouteOutcome.FAILED
    assert type(error).__name__ in end.message


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"choices": []}', b'{"choices": [1]}'])
@on_virtual_time
async def test_a_200_without_a_result_is_a_failure(body: bytes) -> None:
    class Empty(FakeFrontend):
        async def post(self, *args: Any) -> HttpResponse:
            return HttpResponse(200, body)

    end, _ = await run_probe(Empty(), probe(forms=[CHAT]), LoopClock())
    assert (end.outcome, "without a result" in end.message) == (RouteOutcome.FAILED, True)


@pytest.mark.parametrize(
    ("first", "second", "outcome", "message", "seconds"),
    [
        # Round robin begins with worker 2, which the probe is not for.
        ("answer", "answer", RouteOutcome.ANSWERED, "", 0.0),
        ("answer", "hang", RouteOutcome.ANSWERED, "", 0.5),
        ("answer", "error", RouteOutcome.ANSWERED, "", 0.0),
        ("hang", "answer", RouteOutcome.FAILED, "within 2 s", 2.0),
        ("error", "answer", RouteOutcome.FAILED, "503", 0.0),
        ("anonymous", "anonymous", RouteOutcome.ANSWERED, "", 0.0),
    ],
)
@on_virtual_time
async def test_without_a_header_only_an_answer_of_the_worker_itself_counts(
    first: str, second: str, outcome: RouteOutcome, message: str, seconds: float
) -> None:
    frontend = FakeFrontend(
        {1: FakeWorker(behaviour=first), 2: FakeWorker(behaviour=second)}, forms=(EMBEDDING,)
    )
    end, _ = await run_probe(frontend, probe(forms=[EMBEDDING]), LoopClock())
    assert (end.outcome, round(end.ended - end.started, 3)) == (outcome, seconds)
    assert message in end.message
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "probe-any"]


@on_virtual_time
async def test_a_worker_is_refused_if_only_others_answer() -> None:
    frontend = FakeFrontend({2: FakeWorker()}, forms=(EMBEDDING,))
    end, _ = await run_probe(frontend, probe(forms=[EMBEDDING]), LoopClock())
    assert (end.outcome, len(frontend.posts)) == (RouteOutcome.REFUSED, 6)
    assert "other workers have answered all probes" in end.message
