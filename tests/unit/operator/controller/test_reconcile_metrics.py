"""Metrics of the reconcile loop: results, durations, and times in the queue."""

import asyncio
import contextlib

from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from vllmendpoint_operator.controller.queue import WorkQueue
from vllmendpoint_operator.controller.reconcile_loop import ReconcileLoop
from vllmendpoint_operator.errors import KubeError, Throttled
from vllmendpoint_operator.metrics import Metrics


class FakeReconciler:
    """Returns or raises the given results, one for each reconcile."""

    def __init__(self, *results):
        self.results = list(results)

    async def reconcile(self, key):
        result = self.results.pop(0)
        await asyncio.sleep(0.02)
        if isinstance(result, Exception):
            raise result
        return result


def scrape(metrics):
    """Values by name and labels, without buckets."""
    return {
        (sample.name.removeprefix("vllmendpoint_operator_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        for sample in family.samples
        if sample.name.startswith("vllmendpoint_operator_") and "le" not in sample.labels
    }


async def test_each_reconcile_is_counted_by_its_result():
    metrics, queue = Metrics(), WorkQueue()
    reconciler = FakeReconciler(None, KubeError(500, "no"), ZeroDivisionError(), Throttled(429, "slowly"))
    loop = ReconcileLoop(queue, reconciler, metrics)
    for name in "abcd":
        queue.add(("ns", name))
    assert scrape(metrics)["queue_depth",] == 4
    task = asyncio.create_task(loop.run())
    async with asyncio.timeout(5):
        while scrape(metrics)["reconcile_duration_seconds_count",] < 4:
            await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    queue.close()
    found = scrape(metrics)
    assert found["reconcile_total", "success"] == 1
    assert found["reconcile_total", "error"] == 3
    assert found["reconcile_errors_total",] == 3
    assert found["reconcile_duration_seconds_sum",] >= 4 * 0.02
    assert found["queue_duration_seconds_count",] == 4
    assert found["queue_duration_seconds_sum",] >= (1 + 2 + 3) * 0.02
    assert found["queue_depth",] == 0
