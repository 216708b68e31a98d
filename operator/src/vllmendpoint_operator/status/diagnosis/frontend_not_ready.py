"""Why a running frontend pod is not ready: from its report."""

from vllmendpoint_api import FrontendReport, Reason, Stage
from vllmendpoint_operator.observe.snapshot import Pod

from .pod_diagnosis import PodDiagnosis
from .sentences import sentence

__all__ = ["frontend_cause"]


def frontend_cause(pod: Pod, report: FrontendReport) -> PodDiagnosis | None:
    """``NoRoute`` for a frontend that only lacks a route. None if the report has no cause."""
    detail = f" {sentence(report.message)}" if report.message else ""
    if report.stage.name == Stage.STOPPING:
        return PodDiagnosis(Reason.NOT_READY, f"Pod {pod.name} is shutting down.")
    if report.stage.name != Stage.SERVING:
        return PodDiagnosis(Reason.STARTING, f"Pod {pod.name} is starting: stage {report.stage.name}.")
    if not report.answering:
        return PodDiagnosis(
            Reason.NOT_READY,
            f"The HTTP server of pod {pod.name} does not respond.{detail} See its log, or delete the pod to "
            "replace it.",
        )
    if not report.ready:
        return PodDiagnosis(Reason.NO_ROUTE, f"Pod {pod.name} has no route to a ready replica.{detail}")
    return None
