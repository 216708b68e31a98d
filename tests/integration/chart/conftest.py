"""Clusters for the tests of the chart: one per test that changes the whole cluster, and a shared one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.chart.installed_chart import CHART, NAME, Cluster, running_cluster


def _create_namespaces(cluster: Cluster) -> tuple[str, str, str]:
    names = ("ops", "a", "b")
    for name in names:
        cluster.kubectl("create", "namespace", name)
        cluster.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    return names


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_cluster(tmp_path / "cluster") as running:
        yield running


@pytest.fixture
def namespaces(cluster: Cluster) -> tuple[str, str, str]:
    """The operator's namespace and two for endpoints, all under Pod Security "restricted"."""
    return _create_namespaces(cluster)


@pytest.fixture(scope="package")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A shared cluster with the chart in the namespace ``ops``, for all namespaces. No pods run."""
    with running_cluster(tmp_path_factory.mktemp("installed") / "cluster") as cluster:
        _create_namespaces(cluster)
        cluster.helm("install", NAME, CHART, "--namespace", "ops")
        yield cluster
