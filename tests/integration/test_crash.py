"""The operator is killed at a request of its own, and the next one converges: a sample of tests/long's."""

import pytest

from tests.integration.crash_points import Crashes


@pytest.fixture(scope="module")
def crashes(api, tmp_path_factory):
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": "crashes"}})
    made = Crashes(api, "crashes", tmp_path_factory.mktemp("crashes"))
    yield made
    made.close()


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
def test_killed_at_a_request_it_converges(crashes, change, at, when):
    assert crashes.killed(change, at, when), "it makes that many requests"
