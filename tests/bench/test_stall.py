"""Seconds from SIGSTOP of the engine core to the condition, idle and under traffic: five runs each.

The figures depend on the machine; their relation to period and timeout does not.
"""

import statistics
import threading
import time

import pytest

from tests.e2e.conftest import CHAT, Cluster, chat, eventually, manifest

pytestmark = pytest.mark.timeout(1800)
NAME, PERIOD, TIMEOUT, RUNS = "bench", 10, 3, 5


@pytest.fixture(scope="module")
def pod(cluster: Cluster) -> str:
    cluster.apply(manifest(NAME, uri=CHAT, healthCheck={"periodSeconds": PERIOD, "timeoutSeconds": TIMEOUT}))
    cluster.wait_ready(NAME)
    return str(cluster.workers(NAME)[0]["metadata"]["name"])


def freeze(cluster: Cluster, pod: str) -> tuple[float, float]:
    """Seconds to the condition, and from the thaw back to Ready."""
    cluster.signal_engine(pod, "SIGSTOP")
    frozen = time.monotonic()
    try:
        eventually(
            lambda: cluster.condition(NAME, "Generating"), lambda c: c["reason"] == "EngineStalled", 60, 0.1
        )
        detected = time.monotonic() - frozen
    finally:
        cluster.signal_engine(pod, "SIGCONT")
    thawed = time.monotonic()
    eventually(lambda: cluster.condition(NAME, "Ready"), lambda c: c["status"] == "True", 60, 0.1)
    return detected, time.monotonic() - thawed


@pytest.mark.parametrize("traffic", [False, True], ids=["idle", "traffic"])
def test_a_stall_is_detected_without_a_restart(cluster: Cluster, pod: str, traffic: bool) -> None:
    stop = threading.Event()

    def send(base: str) -> None:
        while not stop.is_set():
            chat(base, NAME, "Write a long story about a bridge.", max_tokens=200)
            stop.wait(0.05)

    rows = []
    with cluster.forward(f"service/{NAME}", 8000) as base:
        users = [threading.Thread(target=send, args=(base,), daemon=True) for _ in range(2 if traffic else 0)]
        for user in users:
            user.start()
        try:
            for run in range(RUNS):
                time.sleep(6 + 2.3 * run)  # at different moments of the period
                rows.append(freeze(cluster, pod))
        finally:
            stop.set()
        for user in users:
            user.join(90)
    bound = TIMEOUT + 1 if traffic else PERIOD + TIMEOUT + 1
    detected = [row[0] for row in rows]
    print(
        f"\n{'traffic' if traffic else 'idle'}: detected after "
        + ", ".join(f"{seconds:.1f}" for seconds in detected)
        + f" s (median {statistics.median(detected):.1f}, longest {max(detected) / bound:.2f} of the bound, "
        + f"{bound} s); Ready again after "
        + ", ".join(f"{row[1]:.1f}" for row in rows)
        + " s"
    )
    (state,) = [s for p in cluster.workers(NAME) for s in p["status"]["containerStatuses"]]
    assert state["restartCount"] == 0
