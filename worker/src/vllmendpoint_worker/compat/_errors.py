"""The error of the guide's functions."""

from collections.abc import Sequence

from vllmendpoint_api import Problem
from vllmendpoint_worker.errors import ConfigurationRejectedError

__all__ = ["HealthCheckRejectedError"]


class HealthCheckRejectedError(ConfigurationRejectedError, ValueError):
    """A health-check setting is rejected. Each sentence names source, field, cause and fix.

    It never repeats the value of an environment variable or of a file.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems)
        self.args = ("; ".join(f"{problem.source}: {problem.message}" for problem in self.problems),)
