"""A worker whose engine core writes down what reaches it (``engine_spy``)."""

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from .conftest import WorkerProcess

__all__ = ["Spied"]

SPY = Path(__file__).parent / "engine_spy"


class Spied(WorkerProcess):
    """A worker whose engine writes down what it receives."""

    def __init__(
        self,
        folder: Path,
        model: Path,
        environ: dict[str, str] | None = None,
        arguments: list[str] | None = None,
    ) -> None:
        self._seen_file = folder / "seen.jsonl"
        spying = {"PYTHONPATH": str(SPY), "ENGINE_SPY_FILE": str(self._seen_file)}
        spy = ["--scheduler-cls", "engine_spy.SpyScheduler"]
        super().__init__(folder, model, spying | (environ or {}), [*spy, *(arguments or [])])
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))

    def seen_lines(self) -> list[str]:
        return self._seen_file.read_text().split("\n")[:-1]  # the last may be half written

    def users_seen(self) -> list[dict[str, Any]]:
        """Every request of a user that reached the engine core, oldest first."""
        seen = map(json.loads, self.seen_lines())
        return [request for request in seen if not request["id"].startswith("vllmendpoint-probe-")]

    def probes_seen(self) -> list[dict[str, Any]]:
        """Every probe that reached the engine core, oldest first."""
        seen = map(json.loads, self.seen_lines())
        return [request for request in seen if request["id"].startswith("vllmendpoint-probe-")]

    def prompt(self, request: dict[str, Any]) -> str:
        return str(self._tokenizer.decode(request["tokens"], skip_special_tokens=False))

    def metric(self, name: str, port: str = "report") -> float:
        """The sum of a metric's series."""
        return self.metrics(name, port=port)[0]

    def metrics(self, *names: str, port: str = "report") -> tuple[float, ...]:
        """Such sums, of one moment."""
        text = self.request(port, "/metrics")[1].decode()

        def summed(name: str) -> float:
            values = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
            assert values, name
            return sum(map(float, values))

        return tuple(map(summed, names))
