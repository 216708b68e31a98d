"""Selects the health check of all workers: the spec's, or the last good one if a worker rejects it. Pure.

Every replica reads the settings from one ConfigMap and tries a changed payload on its own engine before it
activates it. If one replica rejects the payload, the others must not activate it either, and a replica that
starts later must not stay out of service because of it. Therefore the operator publishes the last good health
check again. Annotations of the ConfigMap store both, until the spec has another health check or other pods.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from vllmendpoint_api import (
    ConfigurationState,
    HealthCheckSettings,
    PayloadSource,
    Problem,
    Reason,
    WorkerSettings,
    names,
)
from vllmendpoint_operator.desired_state import WithheldHealthCheck
from vllmendpoint_operator.kube.differences import differs
from vllmendpoint_operator.observe.snapshot import REVISION_ANNOTATION, Object, Observed, Pod

__all__ = ["SelectedHealthCheck", "select_health_check"]

_LAST_GOOD: Final = f"{names.GROUP}/last-good-health-check"
_WITHHELD: Final = f"{names.GROUP}/withheld-health-check"


@dataclass(frozen=True, slots=True)
class SelectedHealthCheck:
    check: HealthCheckSettings
    withheld: WithheldHealthCheck | None
    """The health check of the spec, if it is not ``check``."""
    annotations: Mapping[str, str]
    """For the ConfigMap."""


def select_health_check(
    requested: HealthCheckSettings,
    request: str,
    live: Object | None,
    deployments: Iterable[Object],
    observed: Observed,
) -> SelectedHealthCheck:
    """``requested``: of the spec. ``request``: digest of it and of the current revision.

    ``live``: the ConfigMap with the settings. ``deployments``: the desired Deployments of the workers.
    """
    published = _settings(live)
    if live is None or published is None:
        return SelectedHealthCheck(requested, None, {})
    last_good, withheld = _last_good(live), _withheld(live)
    if withheld is not None and withheld.request == request and last_good is not None:
        return _selected(last_good, last_good, withheld)
    if published.health_check != requested:
        accepted = _is_accepted(published, observed)
        return _selected(requested, published.health_check if accepted else last_good, None)
    if last_good is None or last_good == requested:
        return _selected(requested, last_good, None)
    for pod in (pod for deployment in deployments for pod in _current_pods(deployment, observed)):
        if (problem := _rejection(pod, published.hash)) is not None:
            message = f"{problem.source}: {problem.message}"
            return _selected(last_good, last_good, WithheldHealthCheck(request, pod.name, message))
    return _selected(requested, last_good, None)


def _selected(
    check: HealthCheckSettings, last_good: HealthCheckSettings | None, withheld: WithheldHealthCheck | None
) -> SelectedHealthCheck:
    annotations = {}
    if last_good is not None:
        annotations[_LAST_GOOD] = msgspec.json.encode(last_good.wire(), order="sorted").decode()
    if withheld is not None:
        annotations[_WITHHELD] = msgspec.json.encode(withheld).decode()
    return SelectedHealthCheck(check, withheld, annotations)


def _is_accepted(settings: WorkerSettings, observed: Observed) -> bool:
    """Whether a worker uses these settings and no worker rejects their payload."""
    reports = [
        pod.stream.report.configuration for pod in observed.all_workers if pod.stream.report is not None
    ]
    is_used = any(
        report.state == ConfigurationState.RESOLVED and report.settings_hash == settings.hash
        for report in reports
    )
    return is_used and not any(_rejection(pod, settings.hash) for pod in observed.all_workers)


def _rejection(pod: Pod, settings_hash: str) -> Problem | None:
    """The problem that the worker reports with the spec's payload in these settings."""
    report = pod.stream.report.configuration if pod.stream.report is not None else None
    if report is None or report.state != ConfigurationState.REJECTED or report.settings_hash != settings_hash:
        return None
    return next(
        (
            problem
            for problem in report.problems
            if problem.reason == Reason.INVALID_PAYLOAD and problem.source == PayloadSource.SPEC
        ),
        None,
    )


def _current_pods(deployment: Object, observed: Observed) -> list[Pod]:
    """Running workers of the desired template. They may accept a payload that older workers reject."""
    name = deployment["metadata"]["name"]
    live = observed.child("Deployment", name)
    if live is None or differs(deployment["spec"]["template"], live["spec"]["template"]):
        return []
    revision = str((live["metadata"].get("annotations") or {}).get(REVISION_ANNOTATION, ""))
    newest = observed.template_hashes.get((name, revision))
    return [
        pod
        for pod in observed.all_workers
        if pod.template_hash == newest and pod.running and not pod.terminating and not pod.stream.disconnected
    ]


def _annotation(live: Object, name: str) -> str:
    return str((live["metadata"].get("annotations") or {}).get(name, ""))


def _settings(live: Object | None) -> WorkerSettings | None:
    try:
        return WorkerSettings.model_validate_json((live or {})["data"][names.SETTINGS_FILE])
    except (KeyError, ValueError):
        return None


def _last_good(live: Object) -> HealthCheckSettings | None:
    try:
        return HealthCheckSettings.model_validate_json(_annotation(live, _LAST_GOOD))
    except ValueError:  # missing, or edited by another client
        return None


def _withheld(live: Object) -> WithheldHealthCheck | None:
    try:
        return msgspec.json.decode(_annotation(live, _WITHHELD), type=WithheldHealthCheck)
    except (msgspec.ValidationError, msgspec.DecodeError):
        return None
