"""Starts control planes: an API server with its controllers and etcd, without nodes."""

import contextlib
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.api_server import ROOT, Api
from tests.integration.chart_account import install_account
from tests.integration.polling import until
from tests.project_cache import BIN


@contextlib.contextmanager
def control_plane(folder: Path, binaries: Path = BIN) -> Iterator[tuple[Api, subprocess.Popen[bytes]]]:
    """As ``bare_control_plane``, with the VLLMEndpoint CRD and the chart's service account for operators."""
    with bare_control_plane(folder, binaries) as (api, process):
        api.kubectl("apply", "--server-side", "-f", str(ROOT / "crds" / "vllmendpoints.yaml"))
        # Not `kubectl wait`: it fails for a CRD without conditions.
        get = ("get", "vllmendpoints", "-A")
        until(lambda: "No resources found" in api.kubectl(*get, check=False), "the CRD is served", 60)
        api.operators = install_account(api.kubectl, BIN / "helm", folder / "operators.json")
        yield api, process


@contextlib.contextmanager
def bare_control_plane(folder: Path, binaries: Path = BIN) -> Iterator[tuple[Api, subprocess.Popen[bytes]]]:
    """Start a control plane in a few seconds. Yields its API server and the parent process of its parts."""
    if not (BIN / "cluster").exists():
        pytest.skip(f"no control plane in {BIN}: `hack/cluster/build.sh` builds it")
    with (folder.parent / "controlplane.err").open("wb") as errors:
        process = subprocess.Popen(
            [binaries / "cluster", "controlplane", "--dir", folder], stdout=subprocess.PIPE, stderr=errors
        )
        try:
            assert process.stdout is not None
            readable, _, _ = select.select([process.stdout], [], [], 120)
            assert readable, "the control plane was not ready within 120 s"
            assert process.stdout.readline().startswith(b"ready ")
            api = Api(folder)
            yield api, process
            api.close()
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait(10)
            if process.stdout is not None:
                process.stdout.close()
