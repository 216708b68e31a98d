"""Events report failures and recoveries of the parts of Ready, and when Ready becomes True."""

import pytest

from vllmendpoint_api import ConditionEntry, HandlersStatus, HandlerStatus, VLLMEndpointStatus
from vllmendpoint_operator.controller.publish.events import condition_events, event_body, handler_events


def entry(kind, status, reason):
    return ConditionEntry(
        type=kind,
        status=status,
        reason=reason,
        message=f"{reason}!",
        last_transition_time="2026-01-01T12:00:00Z",
        observed_generation=1,
    )


@pytest.mark.parametrize(
    ("kind", "before", "after", "expected"),
    [
        ("Generating", ("True", "Generating"), ("False", "EngineStalled"), ("Warning", "EngineStalled")),
        ("Generating", ("False", "EngineStalled"), ("False", "EngineStalled"), None),
        ("Generating", ("False", "EngineStalled"), ("False", "EngineDead"), ("Warning", "EngineDead")),
        ("Generating", ("False", "EngineStalled"), ("True", "Generating"), ("Normal", "Generating")),
        ("Generating", ("Unknown", "NoWorkers"), ("True", "Generating"), None),
        ("Generating", ("True", "Generating"), ("Unknown", "WorkerUnreachable"), None),
        ("Available", None, ("False", "Starting"), None),
        ("Available", ("False", "Starting"), ("False", "ImagePullFailed"), ("Warning", "ImagePullFailed")),
        ("Available", ("False", "ImagePullFailed"), ("False", "Starting"), None),
        ("Available", ("False", "Starting"), ("True", "Available"), None),
        ("Accepted", None, ("True", "Accepted"), None),
        ("Accepted", None, ("False", "NameTaken"), ("Warning", "NameTaken")),
        ("Accepted", ("False", "NameTaken"), ("True", "Accepted"), ("Normal", "Accepted")),
        ("ResolvedRefs", ("True", "Resolved"), ("False", "ClaimNotFound"), ("Warning", "ClaimNotFound")),
        ("UpToDate", ("True", "UpToDate"), ("False", "RollingOut"), None),
        ("UpToDate", ("False", "RollingOut"), ("False", "RolloutStopped"), ("Warning", "RolloutStopped")),
        ("UpToDate", ("False", "RolloutStopped"), ("False", "RollingOut"), None),
        ("UpToDate", ("False", "RollingOut"), ("True", "UpToDate"), None),
        ("Serving", ("True", "Serving"), ("True", "KVEventsMissing"), ("Warning", "KVEventsMissing")),
        ("Serving", ("True", "KVEventsMissing"), ("True", "Serving"), ("Normal", "Serving")),
        ("Serving", ("True", "KVEventsMissing"), ("False", "NoRoute"), ("Warning", "NoRoute")),
        ("Ready", ("False", "Starting"), ("True", "Ready"), ("Normal", "Ready")),
        ("Ready", ("True", "Ready"), ("False", "EngineStalled"), None),
        ("Stalled", ("False", "Settled"), ("True", "InvalidSpec"), None),
        ("Reconciling", ("False", "Settled"), ("True", "RollingOut"), None),
    ],
)
def test_failures_and_recoveries_of_conditions_are_recorded_as_events(kind, before, after, expected):
    old = [entry(kind, *before)] if before else []
    events = condition_events(old, [entry(kind, *after)])
    assert [(event.type, event.reason, event.message) for event in events] == (
        [] if expected is None else [(*expected, f"{expected[1]}!")]
    )


def test_an_event_refers_to_its_endpoint(make_endpoint, noon):
    (pending,) = condition_events([], [entry("Accepted", "False", "NameTaken")])
    body = event_body(make_endpoint(), pending, noon, "operator-1")
    assert body["involvedObject"]["uid"] == "uid-1"
    assert body["metadata"]["namespace"] == "team-a"
    assert (body["type"], body["reason"], body["firstTimestamp"]) == (
        "Warning",
        "NameTaken",
        "2026-01-01T12:00:00Z",
    )
    other = event_body(make_endpoint(), pending, noon, "operator-1")
    assert body["metadata"]["name"] != other["metadata"]["name"]


def with_script(digest):
    default = HandlerStatus(source="Default", handler="")
    return VLLMEndpointStatus(
        handlers=HandlersStatus(script_digest=digest, ping=default, invocations=default)
    )


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (with_script("aaa"), with_script("bbb"), "from aaa to bbb"),
        (with_script(""), with_script("bbb"), "from none to bbb"),
        (with_script("aaa"), with_script("aaa"), None),
        (None, with_script("bbb"), None),
        (VLLMEndpointStatus(), with_script("bbb"), None),
        (with_script("aaa"), VLLMEndpointStatus(), None),
    ],
)
def test_a_changed_script_is_reported_with_both_digests(before, after, text):
    events = handler_events(before, after)
    assert [text in event.message for event in events] == ([True] if text else [])


def with_ping(source, handler, digest="aaa"):
    status = with_script(digest)
    ping = HandlerStatus(source=source, handler=handler)
    return status.model_copy(update={"handlers": status.handlers.model_copy(update={"ping": ping})})


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (with_ping("Spec", "model:a"), with_ping("Spec", "model:b"),
         "The handler of /ping changed from model:a (Spec) to model:b (Spec)."),
        (with_ping("Spec", "model:a"), with_ping("Decorator", "model:a"),
         "The handler of /ping changed from model:a (Spec) to model:a (Decorator)."),
        (with_script("aaa"), with_ping("Environment", "model:a"),
         "The handler of /ping changed from vLLM's handler (Default) to model:a (Environment)."),
        (with_ping("Function", "model:a"), with_ping("Function", "model:b", "bbb"),
         ("The handler script changed from aaa to bbb. No worker was restarted. "
          "The handler of /ping changed from model:a (Function) to model:b (Function).")),
        (with_ping("Spec", "model:a"), with_ping("Spec", "model:a"), None),
    ],
)  # fmt: skip
def test_changed_handlers_are_reported_in_one_event(before, after, text):
    assert [event.message for event in handler_events(before, after)] == ([text] if text else [])
