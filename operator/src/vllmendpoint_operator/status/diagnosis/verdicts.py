"""How conditions and messages call the verdicts of a worker that does not generate."""

from typing import Final

from vllmendpoint_api import Reason, Verdict

__all__ = ["ENGINE_PROBLEMS", "VERDICT_REASONS"]

VERDICT_REASONS: Final = {
    Verdict.DEAD: Reason.ENGINE_DEAD,
    Verdict.STALLED: Reason.ENGINE_STALLED,
    Verdict.FAILING: Reason.PROBE_FAILED,
}
"""Verdicts with which a replica does not serve."""

ENGINE_PROBLEMS: Final = {
    Reason.ENGINE_DEAD: ("the engine", "is dead"),
    Reason.ENGINE_STALLED: ("the engine", "is stalled"),
    Reason.PROBE_FAILED: ("the health probe", "fails"),
    Reason.UNEXPECTED_ANSWER: ("the health probe", "gets unexpected answers"),
}
"""Subject and predicate of the sentence in the message."""
