"""One change of an endpoint, with the operator killed at a request of its own; and what must hold then."""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.integration.api_server import Api, AuditOffset
from tests.integration.endpoint_under_test import EndpointUnderTest
from tests.integration.operator_effects import children, events, leftovers, writes
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
    """What is written: the spec of a new endpoint, or a patch of one that is Ready."""
    replicas: int | None = None
    """Of the endpoint that stands before; None: there is none."""
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
class Trace:
    children: dict[tuple[str, str], Object]
    writes: Counter[str]
    events: Counter[str]


class Crashes:
    """One operator after the other in one namespace, under one name in the lease.

    So it is with a container that is started again in its pod, and so the next one leads at once.
    """

    def __init__(self, api: Api, namespace: str, folder: Path) -> None:
        self.api, self.namespace = api, namespace
        self._trap = folder / "trap"
        self._folder = folder
        self._operators: list[Operator] = []
        self._undisturbed: dict[str, Trace] = {}

    def close(self) -> None:
        for operator in self._operators:
            operator.kill()
            assert "a defect of the operator" not in operator.text(), operator.text()

    def undisturbed(self, name: str) -> Trace:
        """What the change comes to when nobody is killed."""
        if name not in self._undisturbed:
            endpoint, node, offset = self._before(CHANGES[name])
            self._write(CHANGES[name], endpoint)
            node.run()
            self._comes_to_rest(node)
            found = Trace(children(endpoint), self._children_written(offset), events(endpoint))
            self._undisturbed[name] = found
            self._end(endpoint)
        return self._undisturbed[name]

    def killed(self, name: str, at: int, when: str) -> str:
        """Make the change with the operator killed at that request; all must come to the same.

        Returns what the operator was killed at; empty where it makes fewer requests.
        """
        change = CHANGES[name]
        expected = Trace({}, Counter(), Counter()) if change.deleted else self.undisturbed(name)
        endpoint, node, offset = self._before(change)
        self._trap.write_text(json.dumps({"at": at, "when": when}))
        self._write(change, endpoint)
        dead = self._operators[-1].process.poll
        node.run(lambda: dead() is not None or node.is_ready())
        self._comes_to_rest(node, lambda: dead() is not None, seconds=WRITE_INTERVAL_SECONDS + 1)
        if dead() is None:
            self._trap.unlink()
            self._end(endpoint)
            return ""
        what = self._trap.with_suffix(".sprung").read_text()
        # What was sent is still under way: the next one must not list before it has landed.
        self._comes_to_rest(node)
        if change.deleted:
            self._deleted_meanwhile(endpoint, "Foreground" if at % 2 else "Background")
            return what
        found = endpoint.get()
        if found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"]:
            assert expected.children.items() <= children(endpoint).items(), (
                f"{what}: observedGeneration is ahead"
            )
        self._start()
        node.run(lambda: node.is_ready() and children(endpoint) == expected.children)
        self._comes_to_rest(node)
        assert node.is_ready()
        assert children(endpoint) == expected.children
        written = self._children_written(offset)
        assert written == expected.writes, (what, written - expected.writes, expected.writes - written)
        # What is seen on the way is a matter of moments; but nothing is told twice.
        told = events(endpoint)
        assert all(count <= max(1, expected.events[event]) for event, count in told.items()), (what, told)
        self._end(endpoint)
        return what

    def _before(self, change: Change) -> tuple[EndpointUnderTest, SimulatedNode, AuditOffset]:
        if not self._operators or self._operators[-1].process.poll() is not None:
            self._start()
        endpoint = EndpointUnderTest(self.api, self.namespace, NAME)
        if self.api.get("VLLMEndpoint", self.namespace, NAME):
            self._end(endpoint)  # of a point that failed
        node = SimulatedNode(endpoint)
        if change.replicas is not None:
            endpoint.create(**_SPEC, replicas=change.replicas)
            node.run()
            self._comes_to_rest(node)
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
                program=(KILLABLE, self._trap),
                identity="operator",
            )
        )
        self._operators[-1].leads()

    def _comes_to_rest(
        self, node: SimulatedNode, or_else: Callable[[], bool] = lambda: False, seconds: float = 0.5
    ) -> None:
        """No request for a while."""
        offset, since = self.api.audit_offset(), time.monotonic()

        def quiet() -> bool:
            nonlocal offset, since
            if self.api.requests(offset, namespace=self.namespace):
                offset, since = self.api.audit_offset(), time.monotonic()
            return or_else() or time.monotonic() - since > seconds

        node.run(quiet)

    def _children_written(self, offset: AuditOffset) -> Counter[str]:
        """Not pods: one whose worker has taken in its settings meanwhile need not be told of them."""
        found = writes(self.api, offset, self.namespace)
        other = ("vllmendpoints", "events", "pods")
        return Counter({what: count for what, count in found.items() if what.split()[1] not in other})

    def _deleted_meanwhile(self, endpoint: EndpointUnderTest, propagation: str) -> None:
        self.api.delete("VLLMEndpoint", self.namespace, NAME, propagation)
        offset = self.api.audit_offset()
        self._start()
        self._nothing_left()
        assert not self.api.writes(offset, namespace=self.namespace)
        self._cut(endpoint)

    def _end(self, endpoint: EndpointUnderTest) -> None:
        self.api.delete("VLLMEndpoint", self.namespace, NAME)
        self._nothing_left()
        self._cut(endpoint)

    def _nothing_left(self) -> None:
        # The garbage collector learns of a new CRD within 30 s.
        until(
            lambda: not leftovers(self.api, self.namespace),
            lambda: leftovers(self.api, self.namespace),
            seconds=45,
        )

    @staticmethod
    def _cut(endpoint: EndpointUnderTest) -> None:
        for worker in endpoint.started:
            worker.close_streams()
