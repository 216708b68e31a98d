"""All cases of ``tests.bench.disruption``, against a VLLMEndpoint and plain Dynamo, in one run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.disruption.cases import CASES
from tests.e2e.conftest import ROOT, Cluster


@pytest.mark.timeout(5400)
@pytest.mark.skipif(os.environ.get("CLUSTER") == "kind", reason="kind cannot add a node to a cluster")
def test_no_request_fails_or_changes_its_text_in_any_case(deployed: Cluster, tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    command = [sys.executable, "-m", "tests.bench.disruption", "--json", str(rows)]
    done = subprocess.run(command, cwd=ROOT, timeout=5300, check=False)
    results = json.loads(rows.read_text())
    assert results["unmeasured"] == {}
    found = results["rows"]
    ours = found["VLLMEndpoint"]
    assert set(ours) == {case.name for case in CASES}, "some cases were not measured"
    assert {name: row["errors"] for name, row in ours.items() if row["failed"] or row["wrong"]} == {}
    assert done.returncode == 0
    assert any(row["failed"] for row in found["plain Dynamo"].values()), "the load finds no failure at all"
