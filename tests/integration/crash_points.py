"""One change of an endpoint, with the operator killed at one of its requests; and the required end result."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.integration.api_server import Api, AuditOffset
from tests.integration.endpoint_under_test import EndpointUnderTest
from tests.integration.operator_effects import QuietPeriod, children, events, leftovers, writes
from tests.integration.operator_process import Operator
from tests.integration.polling import until
from tests.integration.simulated_node import SimulatedNode
from vllmendpoint_operator.controller.publish.status_write_limiter import WRITE_INTERVAL_SECONDS

Object = dict[str, Any]
NAME: Final = "e"
_SPEC: Final[Object] = {"worker": {"image": "first:1"}, "engine": {"config": {"inline": {"seed": 1}}}}
KILLABLE: Final = Path(__file__).parent / "killable_operator.py"


@dataclass(frozen=True)
class Change:
    spec: Object
    """The spec of a new endpoint, or a patch of an endpoint that is Ready."""
    replicas: int | None = None
    """Replicas of the endpoint before the change; None: there is no endpoint."""
    deleted: bool = False
    """The endpoint is deleted while no operator runs."""


CHANGES: Final = {
    "create": Change(_SPEC),
    "update": Change(
        {"worker": {"image": "second:1"}, "engine": {"config": {"inline": {"seed": 2}}}}, replicas=1
    ),
    "scale up": Change({"replicas": 2}, replicas=1),
    "scale down": Change({"replicas": 1}, replicas=2),
    "reconfigure": Change(
        {"healthCheck": {"level": "Standard"}, "handlers": {"script": {"inline": "x = 1\n"}}}, replicas=1
    ),
    "delete": Change(_SPEC, deleted=True),
}


@dataclass(frozen=True)
class Effects:
    """The effects of a change: children, writes of children, and Events."""

    children: dict[tuple[str, str], Object]
    writes: Counter[str]
    events: Counter[str]


class CrashTest:
    """Runs one operator after the other in one namespace, with the same identity in the lease.

    As after a restart of the container in its pod, so the next operator leads immediately.
    """

    def __init__(self, api: Api, namespace: str, folder: Path) -> None:
        self.api, self.namespace = api, namespace
        self._kill_point = folder / "kill-point"
        self._folder = folder
        self._operators: list[Operator] = []
        self._uninterrupted: dict[str, Effects] = {}

    def close(self) -> None:
        for operator in self._operators:
            operator.kill()
            assert "a defect of the operator" not in operator.text(), operator.text()

    def effects_without_a_kill(self, name: str) -> Effects:
        if name not in self._uninterrupted:
            endpoint, node, offset = self._before(CHANGES[name])
            self._write(CHANGES[name], endpoint)
            node.run()
            self._run_until_quiet(node)
            found = Effects(children(endpoint), self._child_writes(offset), events(endpoint))
            self._uninterrupted[name] = found
            self._delete(endpoint)
        return self._uninterrupted[name]

    def kill(self, name: str, at: int, when: str) -> str:
        """Make the change and kill the operator at request number ``at``; the next must reach the same
        effects.

        Returns the request, or an empty string if the change causes fewer requests.
        """
        change = CHANGES[name]
        expected = Effects({}, Counter(), Counter()) if change.deleted else self.effects_without_a_kill(name)
        endpoint, node, offset = self._before(change)
        self._kill_point.write_text(json.dumps({"at": at, "when": when}))
        self._write(change, endpoint)
        exit_code = self._operators[-1].process.poll
        node.run(lambda: exit_code() is not None or node.is_ready())
        self._run_until_quiet(node, lambda: exit_code() is not None, seconds=WRITE_INTERVAL_SECONDS + 1)
        if exit_code() is None:
            self._kill_point.unlink()
            self._delete(endpoint)
            return ""
        what = self._kill_point.with_suffix(".killed").read_text()
        # The last request may be in flight: the next operator must not list before the API server handled it.
        self._run_until_quiet(node)
        if change.deleted:
            self._delete_without_operator(endpoint, "Foreground" if at % 2 else "Background")
            return what
        found = endpoint.get()
        if found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"]:
            assert expected.children.items() <= children(endpoint).items(), (
                f"{what}: observedGeneration is ahead"
            )
        self._start()
        node.run(lambda: node.is_ready() and children(endpoint) == expected.children)
        self._run_until_quiet(node)
        assert node.is_ready()
        assert children(endpoint) == expected.children
        written = self._child_writes(offset)
        assert written == expected.writes, (what, written - expected.writes, expected.writes - written)
        # Events of intermediate states depend on timing, but none is repeated.
        emitted = events(endpoint)
        assert all(count <= max(1, expected.events[event]) for event, count in emitted.items()), (
            what,
            emitted,
        )
        self._delete(endpoint)
        return what

    def _before(self, change: Change) -> tuple[EndpointUnderTest, SimulatedNode, AuditOffset]:
        if not self._operators or self._operators[-1].process.poll() is not None:
            self._start()
        endpoint = EndpointUnderTest(self.api, self.namespace, NAME)
        if self.api.get("VLLMEndpoint", self.namespace, NAME):
            self._delete(endpoint)  # left by a failed test
        node = SimulatedNode(endpoint)
        if change.replicas is not None:
            endpoint.create(**_SPEC, replicas=change.replicas)
            node.run()
            self._run_until_quiet(node)
        return endpoint, node, self.api.audit_offset()

    def _write(self, change: Change, endpoint: EndpointUnderTest) -> None:
        if change.replicas is None:
            endpoint.create(**change.spec)
        else:
            endpoint.patch(spec=change.spec)

    def _start(self) -> None:
        log = self._folder / f"operator-{len(self._operators)}.log"
        self._operators.append(
            Operator(
                self.api.kubeconfig,
                self.namespace,
                log,
                program=(KILLABLE, self._kill_point),
                identity="operator",
            )
        )
        self._operators[-1].until_leading()

    def _run_until_quiet(
        self, node: SimulatedNode, or_else: Callable[[], bool] = lambda: False, seconds: float = 0.5
    ) -> None:
        is_quiet = QuietPeriod(self.api, self.namespace, seconds)
        node.run(lambda: is_quiet() or or_else())

    def _child_writes(self, offset: AuditOffset) -> Counter[str]:
        """Writes of children, without pods: the operator annotates only pods with outdated settings."""
        found = writes(self.api, offset, self.namespace)
        other = ("vllmendpoints", "events", "pods")
        return Counter({what: count for what, count in found.items() if what.split()[1] not in other})

    def _delete_without_operator(self, endpoint: EndpointUnderTest, propagation: str) -> None:
        self.api.delete("VLLMEndpoint", self.namespace, NAME, propagation)
        offset = self.api.audit_offset()
        self._start()
        self._until_no_leftovers()
        assert not self.api.writes(offset, namespace=self.namespace)
        self._stop_workers(endpoint)

    def _delete(self, endpoint: EndpointUnderTest) -> None:
        self.api.delete("VLLMEndpoint", self.namespace, NAME)
        self._until_no_leftovers()
        self._stop_workers(endpoint)

    def _until_no_leftovers(self) -> None:
        # The garbage collector discovers a new CRD within 30 s.
        until(
            lambda: not leftovers(self.api, self.namespace),
            lambda: leftovers(self.api, self.namespace),
            seconds=45,
        )

    @staticmethod
    def _stop_workers(endpoint: EndpointUnderTest) -> None:
        for worker in endpoint.started:
            worker.close_streams()
