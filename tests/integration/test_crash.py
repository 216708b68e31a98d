"""The operator is killed at one of its requests, and the next one converges: a sample of tests/long."""

import pytest

from tests.integration.crash_points import CrashTest


@pytest.fixture(scope="module")
def crash_test(api, tmp_path_factory):
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": "crashes"}})
    crash_test = CrashTest(api, "crashes", tmp_path_factory.mktemp("crashes"))
    yield crash_test
    crash_test.close()


@pytest.mark.parametrize(
    ("change", "at", "when"),
    [
        ("create", 3, "answered"),
        ("create", 8, "sent"),
        ("create", 16, "answered"),
        ("update", 4, "answered"),
        ("delete", 9, "answered"),
    ],
)
def test_the_endpoint_converges_after_a_kill_at_a_request(crash_test, change, at, when):
    assert crash_test.kill(change, at, when), "the change causes fewer requests"
