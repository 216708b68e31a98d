"""What the guide's functions raise."""

from collections.abc import Sequence

from vllmendpoint_api import Problem
from vllmendpoint_worker.errors import ConfigurationRejectedError

__all__ = ["HealthCheckRejectedError"]


class HealthCheckRejectedError(ConfigurationRejectedError, ValueError):
    """A health-check setting is refused: each sentence gives source, field, what is wrong and the fix.

    The content of an environment variable or of a file is never repeated.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems)
        self.args = ("; ".join(f"{problem.source}: {problem.message}" for problem in self.problems),)
