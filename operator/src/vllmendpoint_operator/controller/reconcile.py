"""Reconciles one endpoint: observes, plans, applies and publishes the status."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import Final

from vllmendpoint_api import Reason
from vllmendpoint_operator.apply.diff import diff, diff_scaling
from vllmendpoint_operator.apply.execute import Executor, Result
from vllmendpoint_operator.cache.caches import Cache, Key
from vllmendpoint_operator.desired_state import Plan
from vllmendpoint_operator.errors import ConditionError, KubeError, NamespaceTerminating, PlanError, Throttled
from vllmendpoint_operator.kube.client import Kube, Object
from vllmendpoint_operator.metrics import Metrics
from vllmendpoint_operator.observe.observer import Observer, Workload, find_others
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed
from vllmendpoint_operator.plan.options import Options
from vllmendpoint_operator.plan.planner import plan, scaling
from vllmendpoint_operator.plan.pods.dropped_nulls import find_dropped_nulls
from vllmendpoint_operator.reports.streams import CONNECTING_GRACE_SECONDS, FIRST_REPORT_SECONDS
from vllmendpoint_operator.status import endpoint_status, invalid_spec_status, partial_spec_status
from vllmendpoint_operator.status.routes import settling_seconds

from .claims import EndpointClaims
from .endpoint_parser import has_status_of_generation, parse_endpoint, parse_partly
from .endpoint_store import EndpointStore
from .publish.event_recorder import EventRecorder
from .publish.events import dropped_null_events, edit_events, warning_events
from .publish.status_publisher import StatusPublisher
from .publish.status_writer import StatusWriter

__all__ = ["Reconciler"]

log = logging.getLogger(__name__)

_REJECTED_RETRY_SECONDS: Final = 30.0
"""Time until the next attempt after the API server rejected an object, or its name was taken: no event shows
when the cause is gone."""
_FAILURES_BEFORE_REPORT: Final = 3
"""Consecutive failures of the API server until the status reports them. Single failures are common."""


class Reconciler:
    """Reconciles one endpoint at each call, without a task of its own.

    Args:
        reporting_instance: name of this process in Events.
        operator: name in claims; all replicas of the operator share it.
        clock: seconds of a monotonic clock.
    """

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
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._kube = kube
        self._cache = cache
        self._observer = observer
        self._endpoints = endpoints
        self._options = options
        writer = StatusWriter(kube, endpoints, self._forget)
        self._claims = EndpointClaims(endpoints, writer, metrics, operator)
        self._recorder = EventRecorder(kube, self._may_write, reporting_instance)
        self._publisher = StatusPublisher(
            writer=writer,
            recorder=self._recorder,
            metrics=metrics,
            may_write=self._may_write,
            operator=operator,
            clock=clock,
        )
        self._failures: dict[Key, int] = {}
        """Endpoint -> consecutive failures to apply its children."""

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile one endpoint. Return the seconds after which to do so again even if nothing happens.

        Raises KubeError if a retry may help.
        """
        obj = self._endpoints.get(key)
        if obj is None or "deletionTimestamp" in obj["metadata"]:
            # The garbage collector deletes the children by their owner references.
            self._forget(key)
            return None
        if not self._claims.manages(key):
            if not self._claims.is_conflict_logged(key):
                self._forget(key)
            return await self._claims.report_conflict(obj)
        requeue_after = await self._claim(obj)
        obj = self._endpoints.get(key)
        if requeue_after is not None or obj is None or not self._claims.manages(key):
            return requeue_after
        workload = self._observer.workload(key, obj["metadata"]["uid"])
        if workload.awaiting_first_report and has_status_of_generation(obj):
            return FIRST_REPORT_SECONDS  # the report triggers the next reconcile
        try:
            endpoint = parse_endpoint(obj)
        except PlanError as error:
            return await self._reconcile_unreadable(obj, error, workload)
        return await self._reconcile_readable(obj, endpoint, workload)

    async def _claim(self, obj: Object) -> float | None:
        """Claim the endpoint. Return None if it succeeds; otherwise the seconds after which to try again."""
        if obj["status"].get("observedGeneration", -1) < 0:
            try:
                parse_endpoint(obj)
            except PlanError:
                return None  # no children are created, so that the first status is early enough as the claim
        return await self._claims.claim(obj)

    async def _reconcile_readable(self, obj: Object, endpoint: Endpoint, workload: Workload) -> float | None:
        observed = await self._observer.observe(endpoint, workload)
        desired, problem = self._plan(endpoint, observed)
        executor = self._executor(endpoint)
        if desired is not None:
            problem = await self._apply(endpoint, observed, desired, executor)
            observed = executor.result.update(observed)
        if isinstance(problem, NamespaceTerminating):
            return None
        is_scaled = True
        if problem is not None and not _is_unavailable(problem):
            is_scaled = await self._scale(endpoint, observed, executor)
            observed = executor.result.update(observed)
        await self._record_result(obj, endpoint, desired, executor.result)
        if isinstance(problem, KubeError):
            await self._publish_failure(obj, endpoint, observed, desired, problem)
            raise problem
        self._failures.pop(endpoint.key, None)
        status = endpoint_status(endpoint, observed, desired, problem)
        requeue_after = await self._publisher.publish(obj, endpoint, status)
        if requeue_after is not None:
            return requeue_after
        if not is_scaled or (problem is not None and desired is not None):
            return _REJECTED_RETRY_SECONDS
        pods = [*observed.all_workers, *(pod for pod in observed.frontends if pod.has_report_port)]
        if any(pod.running and not pod.stream.grace_expired for pod in pods):
            return CONNECTING_GRACE_SECONDS
        return settling_seconds(observed)

    async def _reconcile_unreadable(self, obj: Object, error: PlanError, workload: Workload) -> float | None:
        """Apply the replicas and report on the pods of a spec that this version cannot read completely."""
        endpoint, can_scale = parse_partly(obj)
        if not can_scale:
            status = invalid_spec_status(endpoint, error.message, datetime.now(UTC))
            return await self._publisher.publish(obj, endpoint, status)
        observed = await self._observer.observe(endpoint, workload)
        executor = self._executor(endpoint)
        is_scaled = await self._scale(endpoint, observed, executor)
        status = partial_spec_status(endpoint, executor.result.update(observed), error)
        requeue_after = await self._publisher.publish(obj, endpoint, status)
        if requeue_after is not None:
            return requeue_after
        return None if is_scaled else _REJECTED_RETRY_SECONDS

    def _plan(
        self, endpoint: Endpoint, observed: Observed
    ) -> tuple[Plan | None, ConditionError | KubeError | None]:
        try:
            return plan(endpoint, observed, self._options), None
        except ConditionError as error:
            return None, error

    async def _apply(
        self, endpoint: Endpoint, observed: Observed, desired: Plan, executor: Executor
    ) -> ConditionError | KubeError | None:
        """Apply the plan, unless the endpoint is paused. Return the error that prevented it."""
        if endpoint.spec.paused:
            return None
        try:
            others = find_others(self._cache, endpoint, observed, desired.children)
            await executor.execute(diff(endpoint, desired, observed, others))
        except (ConditionError, KubeError) as error:
            return error
        return None

    async def _scale(self, endpoint: Endpoint, observed: Observed, executor: Executor) -> bool:
        """Apply only the replicas, because the rest cannot be applied. Return whether all were applied."""
        if endpoint.spec.paused:
            return True
        desired = scaling(endpoint, observed)
        others = find_others(self._cache, endpoint, observed, desired.children)
        try:
            await executor.execute(diff_scaling(endpoint, desired, observed, others))
        except (ConditionError, KubeError) as error:
            # The status reports why the rest cannot be applied.
            log.warning("cannot apply the replicas", extra={"error": str(error)})
            return False
        return True

    def _executor(self, endpoint: Endpoint) -> Executor:
        return Executor(self._kube, self._cache, endpoint, partial(self._may_write, endpoint))

    async def _record_result(
        self, obj: Object, endpoint: Endpoint, desired: Plan | None, result: Result
    ) -> None:
        """Record Events for what the status does not report."""
        dropped_nulls: list[str] = []
        if desired is not None and desired.verify and result.writes:  # a pod template has changed
            annotations = obj["metadata"].get("annotations") or {}
            dropped_nulls = find_dropped_nulls(annotations, obj["spec"])
        await self._recorder.record(
            endpoint,
            [
                *warning_events(result.warnings),
                *edit_events(result.edits),
                *dropped_null_events(dropped_nulls),
            ],
        )

    async def _publish_failure(
        self, obj: Object, endpoint: Endpoint, observed: Observed, desired: Plan | None, error: KubeError
    ) -> None:
        """Report an error of the API server in the status if it persists."""
        self._failures[endpoint.key] = self._failures.get(endpoint.key, 0) + 1
        if self._failures[endpoint.key] >= _FAILURES_BEFORE_REPORT:
            problem = ConditionError(Reason.PENDING, f"{error.message}. The operator retries.")
            status = endpoint_status(endpoint, observed, desired, problem)
            await self._publisher.publish(obj, endpoint, status)

    def _may_write(self, endpoint: Endpoint) -> bool:
        """Whether the endpoint exists, is not being deleted, and is managed by no other operator."""
        return self._endpoints.is_active(endpoint.key, endpoint.uid) and self._claims.manages(endpoint.key)

    def _forget(self, key: Key) -> None:
        self._observer.forget(key)
        self._publisher.forget(key)
        self._claims.forget(key)
        self._failures.pop(key, None)


def _is_unavailable(error: Exception) -> bool:
    """Whether another request would not help: the API server does not answer, or has too many requests."""
    return isinstance(error, Throttled) or (isinstance(error, KubeError) and error.status == 0)
