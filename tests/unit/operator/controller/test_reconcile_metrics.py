"""What a worker of the queue counts: each run, how long it took and waited, and how it ended."""

import asyncio
import contextlib

from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from vllmendpoint_operator.controller.controller import Controller
from vllmendpoint_operator.errors import KubeError, Throttled
from vllmendpoint_operator.metrics import Metrics
from vllmendpoint_operator.settings import Settings


class Reconciler:
    """Ends as it is told, one key after the other."""

    def __init__(self, *ends):
        self.ends = list(ends)
        self.over = asyncio.Event()

    async def reconcile(self, key):
        end = self.ends.pop(0)
        if not self.ends:
            self.over.set()
        await asyncio.sleep(0.02)
        if isinstance(end, Exception):
            raise end
        return end


def scraped(metrics):
    """Value by name and labels, buckets left out."""
    return {
        (sample.name.removeprefix("vllmendpoint_operator_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        for sample in family.samples
        if sample.name.startswith("vllmendpoint_operator_") and "le" not in sample.labels
    }


async def test_each_run_is_counted_by_how_it_ended():
    metrics = Metrics()
    controller = Controller(None, Settings(_cli_parse_args=["--worker-image=i"]), metrics)
    for name in "abcd":
        controller._queue.add(("ns", name))
    assert scraped(metrics)["queue_depth",] == 4
    ends = Reconciler(None, KubeError(500, "no"), ZeroDivisionError(), Throttled(429, "slowly"))
    worker = asyncio.create_task(controller._run_worker(ends))
    await ends.over.wait()
    while scraped(metrics)["reconcile_duration_seconds_count",] < 4:
        await asyncio.sleep(0.01)
    worker.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await worker
    controller._queue.close()
    found = scraped(metrics)
    assert found["reconcile_total", "success"] == 1
    assert found["reconcile_total", "error"] == 3
    assert found["reconcile_errors_total",] == 3
    assert found["reconcile_duration_seconds_sum",] >= 4 * 0.02
    assert found["queue_duration_seconds_count",] == 4
    assert found["queue_duration_seconds_sum",] >= (1 + 2 + 3) * 0.02
    assert found["queue_depth",] == 0
