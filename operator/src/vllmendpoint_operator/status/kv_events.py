"""Ready replicas whose KV caches a frontend does not know, from the reports of frontends."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vllmendpoint_api import KVEventsState, names
from vllmendpoint_operator.components import workers_name
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed, Pod

from .diagnosis.sentences import pods_named, sentence
from .routes import ReadyWorkers, is_settled, quantity_by_role

__all__ = ["MissingEvents", "describe_missing_events", "missing_events"]


@dataclass(frozen=True, slots=True)
class MissingEvents:
    """A frontend that routes by KV events, and a ready replica whose events it does not receive."""

    frontend: str
    worker: str
    """Names of the pods."""
    message: str
    """Of the frontend: the cause and the remedy."""


def missing_events(
    endpoint: Endpoint, observed: Observed, frontend: Pod, pools: Sequence[ReadyWorkers]
) -> Iterator[MissingEvents]:
    """Replicas of an older revision are not expected to publish events: the rollout replaces them."""
    report = frontend.stream.frontend
    if report is None or not report.kv_routing:
        return
    revision = _revision(observed.child("Deployment", workers_name(endpoint)))
    identified = {instance: worker for pool in pools for instance, worker in pool.identified.items()}
    for route in report.routes:
        worker = identified.get(route.instance_id)
        if worker is None or route.kv_events is None or route.kv_events.state != KVEventsState.MISSING:
            continue
        if is_settled(worker, observed.now) and _label(worker.obj) == revision:
            yield MissingEvents(frontend.name, worker.name, sentence(route.kv_events.message))


def describe_missing_events(missing: list[MissingEvents], pools: Sequence[ReadyWorkers]) -> str:
    """Complete sentences: the pods, the effect, the cause and the remedy. ``missing`` is not empty."""
    affected = sorted({each.worker for each in missing})
    first = next(each for each in missing if each.worker == affected[0])
    count = quantity_by_role(affected, pools, "sends no KV events", "send no KV events")
    return (
        f"{count} to a frontend ({pods_named(affected)}): frontend pod {first.frontend} selects pod "
        f"{first.worker} by its load only, and its clients get answers. {first.message}"
    )


def _revision(deployment: dict[str, object] | None) -> object:
    spec = (deployment or {}).get("spec")
    template = spec.get("template") if isinstance(spec, dict) else None
    return _label(template) if isinstance(template, dict) else None


def _label(obj: dict[str, object]) -> object:
    metadata = obj.get("metadata")
    labels = metadata.get("labels") if isinstance(metadata, dict) else None
    return labels.get(names.LABEL_REVISION) if isinstance(labels, dict) else None
