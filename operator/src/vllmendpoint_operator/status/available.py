"""``Available``: enough replicas are ready, and the frontend is up."""

from datetime import datetime, timedelta
from typing import Final

from vllmendpoint_api import Condition, Reason
from vllmendpoint_operator.errors import ConditionError
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed, Pod

from .conditions import Finding, false, kept, true
from .diagnosis.pods import Cause, causes, why, worst
from .diagnosis.refused_pods import remedy
from .diagnosis.sentences import counted, one_line, quantity
from .parts import Part, frontend, workers

__all__ = ["available", "cause_of", "not_created"]

_REPLACED_WITHIN: Final = timedelta(minutes=5)
"""Of the end of a pod, and its controller makes another in seconds."""


def available(endpoint: Endpoint, observed: Observed, problem: ConditionError | None) -> Finding:
    """``problem``: why the spec could not be applied."""
    part = workers(endpoint, observed)
    replicas, ready = part.replicas, part.ready
    if replicas == 0:
        return _to_zero(part, endpoint.spec.paused)
    if ready < part.needed:
        # By a new leader, and not ready: what was known of it still stands.
        unheard = any(pod.awaiting_first_report and pod.started and not pod.ready for pod in part.pods)
        said = kept(endpoint, Condition.AVAILABLE) if unheard else None
        if said is not None and not said.holds:
            return said
        cause = cause_of(part, problem, observed.now)
        message = f"{quantity(ready, replicas, part.what)} ready (minimum: {part.needed}). {cause.message}"
        # What keeps both from being applied is in the message already.
        front = _frontend_down(endpoint, observed, None)
        if front is None or front.reason is Reason.STARTING:
            return false(cause.reason, message)
        # A model may load for an hour: a frontend that cannot start is not told only then.
        reason = front.reason if cause.reason is Reason.STARTING else cause.reason
        return false(reason, f"{message} {front.message}")
    if (front := _frontend_down(endpoint, observed, problem)) is not None:
        return false(front.reason, front.message)
    return true(Reason.AVAILABLE, f"{quantity(ready, replicas, part.what)} ready.")


def _frontend_down(endpoint: Endpoint, observed: Observed, problem: ConditionError | None) -> Cause | None:
    """None where a frontend is ready, or the spec has none."""
    front = frontend(endpoint, observed)
    if front is None or front.ready:
        return None
    cause = cause_of(front, problem, observed.now)
    # While it starts, it is the start that goes on, as with workers.
    reason = Reason.STARTING if cause.reason is Reason.STARTING else Reason.FRONTEND_UNAVAILABLE
    count = quantity(front.ready, front.replicas, front.what)
    return Cause(reason, f"{count} ready, so the endpoint accepts no requests. {cause.message}")


def _to_zero(part: Part, paused: bool) -> Finding:
    """``ScaledToZero`` holds once no pod is left but those on their way out."""
    left = [pod for pod in part.pods if not pod.finished and not pod.terminating]
    if not left and not part.asked_for:
        return true(Reason.SCALED_TO_ZERO, "The endpoint serves no requests because spec.replicas is 0.")
    scale = "The field spec.replicas is 0"
    if part.asked_for:
        scale += f", but the Deployment {part.name} still has {counted(part.asked_for, part.what)}"
    if part.ready:
        serve = "serves" if part.ready == 1 else "serve"
        return true(Reason.AVAILABLE, f"{scale}. {counted(part.ready, 'pod')} still {serve} requests.")
    if paused and part.asked_for:
        return false(
            Reason.PAUSED,
            f"{scale} because spec.paused is true. {_unready(len(left))} "
            "Set spec.paused to false to scale it down.",
        )
    return false(Reason.PENDING, f"{scale}. {_unready(len(left))}")


def _unready(pods: int) -> str:
    if pods > 1:
        return f"{pods} pods exist, but none is ready."
    return "1 pod exists, but it is not ready." if pods else "No pod exists."


def cause_of(part: Part, problem: ConditionError | None, now: datetime) -> Cause:
    """What stands in the way of the newest pods; else of those that are not there."""
    living = [pod for pod in part.pods if not pod.finished]
    newest = part.current or living
    few = min(len(living), len(living if part.current is None else part.current)) < part.replicas
    leaving = [pod for pod in living if pod.terminating and pod not in newest]
    cause = worst(causes([*newest, *leaving], part.budget).values())
    if cause is None or few:
        lacking = not_created(part, problem)
        cause = lacking if cause is None or lacking.reason is not Reason.STARTING else cause
    # It tells why there is a new one.
    before = next((why(gone, part.budget) for gone in _replaced(part.pods, now)), None)
    if before is None:
        return cause
    if cause.reason is Reason.STARTING:
        return Cause(before.reason, f"{before.message} Its replacement is not ready yet. {cause.message}")
    return Cause(cause.reason, f"{cause.message} An earlier pod was removed from its node. {before.message}")


def _replaced(pods: tuple[Pod, ...], now: datetime) -> list[Pod]:
    """Records of pods that were taken off their node just before one that is not ready yet was made, or just
    now: newest first. Kubernetes keeps them for weeks."""
    fresh = [pod for pod in pods if not pod.finished and not pod.ready and not pod.terminating]
    moments = [datetime.fromisoformat(made) for pod in fresh if (made := _made(pod))]
    if len(moments) < len(fresh) or not fresh:
        moments.append(now)
    gone = [pod for pod in pods if pod.finished and not pod.terminating and _just_before(pod, moments)]
    return sorted(gone, key=_ended, reverse=True)


def _just_before(gone: Pod, moments: list[datetime]) -> bool:
    if not (ended := _ended(gone)):
        return True
    return any(abs(moment - datetime.fromisoformat(ended)) <= _REPLACED_WITHIN for moment in moments)


def _made(pod: Pod) -> str:
    return str(pod.obj["metadata"].get("creationTimestamp") or "")


def _ended(pod: Pod) -> str:
    """When its conditions changed last."""
    return max((c.get("lastTransitionTime") or "" for c in pod.status.get("conditions") or []), default="")


def not_created(part: Part, problem: ConditionError | None) -> Cause:
    """Why pods are missing: the Deployment's controller says it, or the plan does."""
    if problem is not None and part.asked_for < part.replicas:
        said = one_line(problem.message)
        verb = "create" if part.deployment is None else "scale up"
        if problem.reason is Reason.PENDING:
            return Cause(
                Reason.STARTING, f"The operator cannot {verb} the Deployment {part.name} yet: {said}."
            )
        return Cause(
            Reason.NOT_READY,
            f"The operator does not {verb} the Deployment {part.name} until this error is fixed: {said}.",
        )
    if not part.refusal:
        return Cause(Reason.STARTING, f"The pods of the Deployment {part.name} are being created.")
    advice = remedy(part.refusal, part.component, part.containers)
    return Cause(
        Reason.POD_CREATION_FAILED,
        f"Kubernetes cannot create pods of the Deployment {part.name}: {one_line(part.refusal)}. {advice}",
    )
