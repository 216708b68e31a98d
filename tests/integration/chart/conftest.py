"""Control planes for the chart: one a test, for it leaves its mark on a whole cluster, and one for all."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.api_server import BIN
from tests.integration.chart.installed_chart import CHART, NAME, Cluster, control_plane


def _running(folder: Path) -> Iterator[Cluster]:
    if not (BIN / "cluster").exists():
        pytest.skip(f"no control plane in {BIN}: `hack/cluster/build.sh` builds it")
    with control_plane(folder) as running:
        yield running


def _namespaces(cluster: Cluster) -> tuple[str, str, str]:
    names = ("ops", "a", "b")
    for name in names:
        cluster.kubectl("create", "namespace", name)
        cluster.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    return names


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    yield from _running(tmp_path / "cluster")


@pytest.fixture
def namespaces(cluster: Cluster) -> tuple[str, str, str]:
    """The operator's and two to serve, all under Pod Security "restricted"."""
    return _namespaces(cluster)


@pytest.fixture(scope="package")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """With the chart in the namespace ``ops``, for the whole cluster; its Deployment's pods do not run."""
    for cluster in _running(tmp_path_factory.mktemp("installed") / "cluster"):
        _namespaces(cluster)
        cluster.helm("install", NAME, CHART, "--namespace", "ops")
        yield cluster
