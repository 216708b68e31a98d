"""How many of the replicas that were asked for serve: the message of ``Ready`` where that is True."""

from collections.abc import Iterator

from vllmendpoint_api import Condition
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed

from .available import cause_of
from .conditions import Finding, kept
from .diagnosis.sentences import counted, quantity
from .parts import Part, frontend, workers

__all__ = ["strength"]


def strength(endpoint: Endpoint, observed: Observed, generating: Finding) -> str:
    """``Ready`` allows for replicas that are missing, as a Deployment's ``Available`` does: so the message
    begins with the count, and says why one is missing."""
    sentences = [*_sentences(endpoint, observed, generating)]
    before = kept(endpoint, Condition.READY)
    if (
        before is not None
        and before.message.startswith(f"{sentences[0]} ")
        and any(pod.awaiting_first_report and not pod.ready for pod in observed.workers)
    ):
        return before.message  # a new leader does not know again yet why one of as many is missing
    return " ".join(sentences)


def _sentences(endpoint: Endpoint, observed: Observed, generating: Finding) -> Iterator[str]:
    part = workers(endpoint, observed)
    up = min(part.ready, part.replicas)
    yield f"{quantity(up, part.replicas, part.what)} {'generating' if generating.holds else 'ready'}."
    if up < part.replicas:
        yield _missing(part, observed)
    front = frontend(endpoint, observed)
    if front is not None and front.ready < front.replicas:
        yield f"{quantity(front.ready, front.replicas, front.what)} ready."
        yield _missing(front, observed)


def _missing(part: Part, observed: Observed) -> str:
    count = part.replicas - part.ready
    verb = "is" if count == 1 else "are"
    return f"{counted(count, part.what)} {verb} not ready. {cause_of(part, None, observed.now).message}"
