"""The operator is killed at every request of every change of an endpoint, and the next one converges."""

import itertools

import pytest

from tests.integration.crash_points import CHANGES, CrashTest


@pytest.fixture(scope="module")
def crash_test(api, tmp_path_factory):
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": "crashes"}})
    crash_test = CrashTest(api, "crashes", tmp_path_factory.mktemp("crashes"))
    yield crash_test
    crash_test.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("when", ["answered", "sent"])
@pytest.mark.parametrize("change", CHANGES)
def test_the_endpoint_converges_after_a_kill_at_every_request(crash_test, change, when, capsys):
    points = []
    for at in itertools.count(1):
        what = crash_test.kill(change, at, when)
        if not what:
            break
        points.append(what)
    with capsys.disabled():
        print(f"\n{change}, {when}: {len(points)} points")
    assert len(points) >= LEAST[change]


LEAST = {"create": 14, "update": 4, "scale up": 3, "scale down": 3, "reconfigure": 3, "delete": 14}
"""Minimum number of requests of each change. A sweep that kills no operator would prove nothing."""
