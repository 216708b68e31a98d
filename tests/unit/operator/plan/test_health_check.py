"""If one worker rejects a payload, all workers get the last good health check."""

import json

import pytest

from vllmendpoint_api import names
from vllmendpoint_operator.status import endpoint_status

GOOD = {"payload": {"prompt": "good", "max_tokens": 1}}
BAD = {"payload": {"prompt": "bad", "max_tokens": 1, "logprobs": 50}}
BETTER = {"payload": {"prompt": "better", "max_tokens": 1}}
SENTENCE = "healthCheck.payload.logprobs is rejected by vLLM: at most 20. Correct the payload."
PROBLEM = {
    "reason": "InvalidPayload",
    "source": "Spec",
    "field": "healthCheck.payload.logprobs",
    "message": SENTENCE,
}


@pytest.fixture
def world(make_endpoint, make_plan, make_observed, make_worker):
    """An endpoint over time: ``step(check, *pods)`` plans it with the children of the last plan."""

    class World:
        def __init__(self):
            self.planned = None

        def endpoint(self, check, **spec):
            return make_endpoint(replicas=2, healthCheck=check, **spec)

        def worker(self, name, check, refuses=False, problem=PROBLEM, **more):
            report = (
                {"configuration__state": "Refused", "configuration__problems": [problem]} if refuses else {}
            )
            return make_worker(name, settings=self.endpoint(check), report=report, **more)

        def step(self, check, *pods, **spec):
            endpoint = self.endpoint(check, **spec)
            observed = make_observed(self.planned, pods=pods) if self.planned else None
            self.planned = make_plan(endpoint, observed)
            observed = make_observed(self.planned, pods=pods)
            found = endpoint_status(endpoint, observed, self.planned, None)
            self.condition = next(
                entry for entry in found.conditions if entry.type == "ConfigurationResolved"
            )
            return self.published()["prompt"]

        @property
        def map(self):
            return next(
                child for child in self.planned.children if child["metadata"]["name"] == "smollm-settings"
            )

        def published(self):
            settings = json.loads(self.map["data"][names.SETTINGS_FILE])
            assert settings["hash"] == self.planned.settings.hash
            return settings["healthCheck"]["payload"]

        def refused(self):
            """Both workers used GOOD; then the spec has BAD, and one of the two rejects it."""
            self.step(GOOD)
            self.step(BAD, self.worker("w-1", GOOD), self.worker("w-2", GOOD))
            return self.step(BAD, self.worker("w-1", BAD, refuses=True), self.worker("w-2", BAD))

    return World()


def test_one_rejection_restores_the_last_good_check_for_all_workers(world) -> None:
    world.step(GOOD)
    assert world.step(BAD, world.worker("w-1", GOOD), world.worker("w-2", GOOD)) == "bad"
    assert world.step(BAD, world.worker("w-1", BAD, refuses=True), world.worker("w-2", BAD)) == "good"
    assert (world.condition.status, world.condition.reason) == ("False", "InvalidPayload")
    assert world.condition.message == (
        f"Pod w-1 rejected the health check from Spec: {SENTENCE} All workers keep the last valid health "
        f"check."
    )
    assert world.planned.refresh.keys() == {"w-1", "w-2", "frontend-1"}


def test_the_check_stays_withheld_once_all_workers_use_the_last_good_one(world) -> None:
    world.refused()
    before = world.map
    running = world.worker("w-1", GOOD), world.worker("w-2", GOOD)
    assert world.step(BAD, *running) == "good"
    assert world.condition.reason == "InvalidPayload"
    assert world.step(BAD) == "good", "also while no worker reports"
    assert world.map == before


def test_another_health_check_is_published_immediately(world) -> None:
    world.refused()
    running = world.worker("w-1", GOOD), world.worker("w-2", GOOD)
    assert world.step(BETTER, *running) == "better"
    assert world.condition.reason == "Pending"
    taken = world.worker("w-1", BETTER), world.worker("w-2", BETTER)
    assert world.step(BETTER, *taken) == "better"
    assert world.condition.reason == "Resolved"


def test_a_spec_with_the_last_good_check_is_resolved(world) -> None:
    world.refused()
    running = world.worker("w-1", GOOD), world.worker("w-2", GOOD)
    assert world.step(GOOD, *running) == "good"
    assert world.condition.reason == "Resolved"


def test_a_rejected_check_never_becomes_the_last_good_one(world) -> None:
    world.step(GOOD)
    world.step(BAD, world.worker("w-1", GOOD), world.worker("w-2", GOOD))
    refusing = world.worker("w-1", BAD, refuses=True), world.worker("w-2", BAD)
    worse = {"payload": BAD["payload"] | {"prompt": "worse"}}
    assert world.step(worse, *refusing) == "worse"
    refusing = world.worker("w-1", worse, refuses=True), world.worker("w-2", worse)
    assert world.step(worse, *refusing) == "good"


def test_other_pods_may_accept_the_check(world) -> None:
    world.refused()
    running = world.worker("w-1", GOOD), world.worker("w-2", GOOD)
    args = {"engine": {"args": ["--max-logprobs", "60"]}}
    assert world.step(BAD, *running, **args) == "bad"


def test_a_worker_of_an_older_template_withholds_nothing(world) -> None:
    world.step(GOOD)
    world.step(BAD, world.worker("w-1", GOOD))
    old = world.worker("w-1", BAD, refuses=True, metadata={"labels": {"pod-template-hash": "old"}})
    assert world.step(BAD, old, world.worker("w-2", BAD)) == "bad"


@pytest.mark.parametrize(
    "problem",
    [
        PROBLEM | {"source": "Environment"},
        PROBLEM | {"reason": "HandlerImportFailed", "field": "handlers.script"},
    ],
    ids=["environment", "handlers"],
)
def test_a_problem_of_another_source_withholds_nothing(world, problem) -> None:
    world.step(GOOD)
    world.step(BAD, world.worker("w-1", GOOD))
    assert world.step(BAD, world.worker("w-1", BAD, refuses=True, problem=problem)) == "bad"


def test_without_a_last_good_check_nothing_is_withheld(world) -> None:
    world.step(BAD)
    assert world.step(BAD, world.worker("w-1", BAD, refuses=True)) == "bad"
    assert (world.condition.status, world.condition.reason) == ("False", "InvalidPayload")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pod": 1}'])
def test_invalid_annotations_are_ignored(world, content) -> None:
    world.refused()
    for name in world.map["metadata"]["annotations"]:
        world.map["metadata"]["annotations"][name] = content
    assert world.step(BAD, world.worker("w-1", BAD, refuses=True)) == "bad"
