"""One endpoint, once: gather, decide, act."""

import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import Any, Final

from pydantic import ValidationError

from vllmendpoint_api import ModelSpec, Reason, VLLMEndpointSpec, VLLMEndpointStatus, names
from vllmendpoint_operator.apply.diff import diff, diff_scaling
from vllmendpoint_operator.apply.execute import Executor
from vllmendpoint_operator.cache.caches import Cache, Key
from vllmendpoint_operator.desired_state import Plan
from vllmendpoint_operator.errors import (
    ConditionError,
    Conflict,
    KubeError,
    NamespaceTerminating,
    PlanError,
    Throttled,
)
from vllmendpoint_operator.kube.client import Kube, Object
from vllmendpoint_operator.kube.kinds import EVENT
from vllmendpoint_operator.metrics import Metrics
from vllmendpoint_operator.observe.observer import Observer, Workload, find_others
from vllmendpoint_operator.observe.partial_spec import parse_readable_fields
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed
from vllmendpoint_operator.plan import Options, plan, scaling
from vllmendpoint_operator.plan.pods.dropped_nulls import find_dropped_nulls
from vllmendpoint_operator.reports.streams import CONNECTING_GRACE_SECONDS, FIRST_REPORT_SECONDS
from vllmendpoint_operator.status import endpoint_status, invalid_spec_status, partial_spec_status

from .assignment import without_conflict
from .claims import EndpointClaims
from .endpoint_store import EndpointStore
from .events import (
    PendingEvent,
    condition_events,
    edit_events,
    event_body,
    handler_events,
    lost_null_events,
    warning_events,
)
from .status_write_limiter import WRITE_INTERVAL_SECONDS, StatusWriteLimiter, is_urgent
from .status_writer import StatusWriter

__all__ = ["Reconciler"]

log = logging.getLogger(__name__)

_UNAPPLIED_RETRY_SECONDS: Final = 30.0
"""What the API server refused, or another object stood in the way of: nothing tells when that changes."""
_REPORT_AFTER_FAILURES: Final = 3
"""Writes of children that fail in a row, until the status says so: one or two are weather."""
_PLACEHOLDER_SPEC: Final = VLLMEndpointSpec(model=ModelSpec(uri="file:///"))
"""Stands in for a spec that this version cannot read; only names and counts are taken from it."""


class Reconciler:
    def __init__(
        self,
        *,
        kube: Kube,
        cache: Cache,
        observer: Observer,
        endpoints: EndpointStore,
        options: Options,
        metrics: Metrics,
        reporting_instance: str,
        operator: str,
    ) -> None:
        self._kube = kube
        self._cache = cache
        self._observer = observer
        self._endpoints = endpoints
        self._options = options
        self._metrics = metrics
        self._reporting_instance = reporting_instance
        """Of this process, in Events."""
        self._operator = operator
        """By which endpoints are claimed; of all replicas."""
        self._writer = StatusWriter(kube, endpoints, self._forget)
        self._claims = EndpointClaims(endpoints, self._writer, metrics, operator)
        self._limiters: dict[Key, StatusWriteLimiter] = {}
        """Of those whose status was written."""
        self._failures: dict[Key, int] = {}
        """Times in a row that the children could not be written."""

    async def reconcile(self, key: Key) -> float | None:
        """Bring one endpoint a step on. Returns seconds after which to look again, if at all.

        Raises KubeError where trying again may help.
        """
        obj = self._endpoints.get(key)
        if obj is None or "deletionTimestamp" in obj["metadata"]:
            # Its children go through their owner references; nothing is written any more.
            self._forget(key)
            return None
        if not self._claims.manages(key):
            if not self._claims.is_reported(key):
                self._forget(key)
            return await self._claims.report_conflict(obj)
        # A new one whose spec is refused has no children: its first status is the claim.
        if obj["status"].get("observedGeneration", -1) >= 0 or _validation_error(obj) is None:
            if again := await self._claims.claim(obj):
                return again
            obj = self._endpoints.get(key)
            if obj is None or not self._claims.manages(key):
                return None
        workload = self._observer.workload(key, obj["metadata"]["uid"])
        told = obj["status"]
        if (
            workload.awaiting_first_report
            and told.get("conditions")
            and told.get("observedGeneration") == obj["metadata"]["generation"]
        ):
            return FIRST_REPORT_SECONDS  # the report brings us back: one look then, and none before
        before = _status(obj)
        try:
            spec = VLLMEndpointSpec.model_validate(obj["spec"])
        except ValidationError as error:
            return await self._report_invalid_spec(obj, before, _first_error_message(error), workload)
        endpoint = _endpoint(obj, spec, before)
        observed = await self._observer.observe(endpoint, workload)
        return await self._apply_and_report(obj, endpoint, observed)

    async def _report_invalid_spec(
        self, obj: Object, before: VLLMEndpointStatus | None, message: str, workload: Workload
    ) -> float | None:
        """This version cannot read the spec: replicas apply, and what runs is reported."""
        readable = parse_readable_fields(obj["spec"])
        if readable is None:
            endpoint = _endpoint(obj, _PLACEHOLDER_SPEC, before)
            return await self._write_status(
                obj, endpoint, invalid_spec_status(endpoint, message, datetime.now(UTC))
            )
        endpoint = _endpoint(obj, readable, before)
        observed = await self._observer.observe(endpoint, workload)
        executor = self._executor(endpoint)
        scaled = await self._scale(endpoint, observed, executor)
        observed = executor.result.update(observed)
        new_status = partial_spec_status(endpoint, observed, PlanError(Reason.INVALID_SPEC, message))
        again = await self._write_status(obj, endpoint, new_status)
        return again if again is not None or scaled else _UNAPPLIED_RETRY_SECONDS

    async def _apply_and_report(self, obj: Object, endpoint: Endpoint, observed: Observed) -> float | None:
        executor = self._executor(endpoint)
        planned, problem = await self._apply(endpoint, observed, executor)
        observed = executor.result.update(observed)
        if isinstance(problem, NamespaceTerminating):
            return None
        # One more request does not help an API server that does not answer, or asks for fewer.
        unavailable = isinstance(problem, KubeError) and (
            problem.status == 0 or isinstance(problem, Throttled)
        )
        scaled = problem is None or unavailable or await self._scale(endpoint, observed, executor)
        result = executor.result
        observed = result.update(observed)
        new_pods = planned is not None and planned.verify and result.writes
        lost = find_dropped_nulls(obj["metadata"].get("annotations") or {}, obj["spec"]) if new_pods else []
        await self._record_events(
            endpoint, [*warning_events(result.warnings), *edit_events(result.edits), *lost_null_events(lost)]
        )
        if isinstance(problem, KubeError):
            self._failures[endpoint.key] = self._failures.get(endpoint.key, 0) + 1
            if self._failures[endpoint.key] >= _REPORT_AFTER_FAILURES:
                told = ConditionError(Reason.PENDING, f"{problem.message}; it is tried again")
                await self._write_status(obj, endpoint, endpoint_status(endpoint, observed, planned, told))
            raise problem
        self._failures.pop(endpoint.key, None)
        again = await self._write_status(obj, endpoint, endpoint_status(endpoint, observed, planned, problem))
        if again is not None:
            return again
        if not scaled or (problem is not None and planned is not None):
            return _UNAPPLIED_RETRY_SECONDS
        if any(pod.running and not pod.stream.grace_expired for pod in observed.workers):
            return CONNECTING_GRACE_SECONDS
        return None

    async def _apply(
        self, endpoint: Endpoint, observed: Observed, executor: Executor
    ) -> tuple[Plan | None, ConditionError | KubeError | None]:
        """The plan, and what keeps it from being made or applied."""
        planned: Plan | None = None
        try:
            planned = plan(endpoint, observed, self._options)
            if not endpoint.spec.paused:
                others = find_others(self._cache, endpoint, observed, planned.children)
                await executor.execute(diff(endpoint, planned, observed, others))
        except (ConditionError, KubeError) as error:
            return planned, error
        return planned, None

    async def _scale(self, endpoint: Endpoint, observed: Observed, executor: Executor) -> bool:
        """Replicas apply to what exists, although the rest cannot be applied now. False: they did not all."""
        if endpoint.spec.paused:
            return True
        scaled = scaling(endpoint, observed)
        others = find_others(self._cache, endpoint, observed, scaled.children)
        try:
            await executor.execute(diff_scaling(endpoint, scaled, observed, others))
        except (ConditionError, KubeError) as error:
            # The status tells what keeps the rest from being applied.
            log.warning("not all replicas are applied: %s", error)
            return False
        return True

    def _executor(self, endpoint: Endpoint) -> Executor:
        return Executor(self._kube, self._cache, endpoint, partial(self._is_managed, endpoint))

    async def _write_status(self, obj: Object, endpoint: Endpoint, new: VLLMEndpointStatus) -> float | None:
        """Seconds after which to look again where it was not written: it waits, or the endpoint changed."""
        new = new.model_copy(update={"operator": self._operator})
        self._metrics.set_endpoint(endpoint.key, endpoint.spec.replicas, new)
        if endpoint.status is not None and new == endpoint.status:
            return None
        now = monotonic()
        limiter = self._limiters.get(endpoint.key) or StatusWriteLimiter(now - WRITE_INTERVAL_SECONDS)
        delay = limiter.delay(now, urgent=is_urgent(endpoint.status, new))
        if delay > 0:
            return delay
        if not self._is_managed(endpoint):
            return None  # deleted, handed over, or its namespace lost, while it was looked at
        again = await self._writer.write(obj, new.wire())
        if again is not None or not self._is_managed(endpoint):
            return again
        limiter.record_write(now)
        self._limiters[endpoint.key] = limiter
        before = endpoint.status.conditions if endpoint.status is not None else ()
        changed = handler_events(endpoint.status, new)
        await self._record_events(endpoint, [*changed, *condition_events(before, new.conditions)])
        return None

    async def _record_events(self, endpoint: Endpoint, news: Iterable[PendingEvent]) -> None:
        for transition in news:
            if not self._is_managed(endpoint):
                return
            log.info("%s: %s", transition.reason, transition.message)
            try:
                await self._kube.create(
                    EVENT, event_body(endpoint, transition, datetime.now(UTC), self._reporting_instance)
                )
            except Conflict:
                log.debug("event %s exists", transition.reason)
            except KubeError as error:
                # An Event is a courtesy: the condition, or the log, has said it already.
                log.warning("event %s not written: %s", transition.reason, error)

    def _is_managed(self, endpoint: Endpoint) -> bool:
        """That very endpoint stands, is not being deleted, and no other operator manages it."""
        return self._endpoints.is_active(endpoint.key, endpoint.uid) and self._claims.manages(endpoint.key)

    def _forget(self, key: Key) -> None:
        self._observer.forget(key)
        self._metrics.remove_endpoint(key)
        self._limiters.pop(key, None)
        self._failures.pop(key, None)
        self._writer.forget(key)
        self._claims.forget(key)


def _endpoint(obj: Object, spec: VLLMEndpointSpec, before: VLLMEndpointStatus | None) -> Endpoint:
    metadata = obj["metadata"]
    return Endpoint(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=int(metadata["generation"]),
        spec=spec,
        status=before,
        rollout=(metadata.get("annotations") or {}).get(names.ANNOTATION_ROLLOUT, ""),
    )


def _status(obj: Object) -> VLLMEndpointStatus | None:
    """None before the first visit; also where another version wrote what this one cannot read."""
    found: dict[str, Any] = without_conflict(obj["status"])
    if not found.get("conditions"):
        return None
    try:
        return VLLMEndpointStatus.model_validate(found)
    except ValidationError as error:
        log.warning("%s: the old status is not understood and is written anew", error.title)
        return None


def _validation_error(obj: Object) -> ValidationError | None:
    """Why this version cannot read the spec."""
    try:
        VLLMEndpointSpec.model_validate(obj["spec"])
    except ValidationError as error:
        return error
    return None


def _first_error_message(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}; correct it, or bring the operator and the CRD to the same version"
