"""A worker that is Stalled for ``restartAfterSeconds`` exits; after its restart it serves again."""

import pytest

from tests.e2e.conftest import TOY, Cluster, eventually, manifest

pytestmark = pytest.mark.timeout(900)
NAME = "ends"


def test_a_stalled_worker_is_restarted_and_serves_again(cluster: Cluster) -> None:
    check = {"periodSeconds": 5, "timeoutSeconds": 5, "restartAfterSeconds": 10}
    cluster.apply(manifest(NAME, uri=TOY, healthCheck=check, frontend={"mode": "None"}))
    cluster.wait_ready(NAME)
    (pod,) = cluster.workers(NAME)
    cluster.signal_engine(pod["metadata"]["name"], "SIGSTOP")

    def state() -> dict:
        (now,) = cluster.workers(NAME)
        return now["status"]["containerStatuses"][0]

    ended = eventually(state, lambda s: s["restartCount"] == 1, 90, every=1)
    last = ended["lastState"]["terminated"]
    assert last["exitCode"] == 3
    assert "restartAfterSeconds" in last["message"]
    cluster.wait_ready(NAME, 400)
    (after,) = cluster.workers(NAME)
    assert after["metadata"]["uid"] == pod["metadata"]["uid"]
