"""Runs the cases against both subjects on the deployed local cluster, and prints one table."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.e2e.conftest import CACHE, Cluster, make_volume

from .analysis import Row, expected_texts
from .cases import CASES, Case
from .load import running_load
from .measure import base_url, measure
from .subjects import Ours, Plain, Subject

BASELINE_ANSWERS = 6


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.disruption", description=__doc__)
    parser.add_argument("--only", choices=("ours", "plain"), help="one subject instead of both")
    parser.add_argument("--case", action="append", default=[], help="beginning of a case's name; repeatable")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    cases = [c for c in CASES if not arguments.case or any(c.name.startswith(p) for p in arguments.case)]
    kubeconfig = subprocess.run(
        [CACHE / "bin/cluster", "kubeconfig"], capture_output=True, text=True, check=True
    ).stdout.strip()
    rows: dict[str, dict[str, Row]] = {}
    for create, short in ((Ours, "ours"), (Plain, "plain")):
        if arguments.only in (None, short):
            subject: Subject = create(Cluster(kubeconfig, f"disruption-{short}"))
            rows[subject.name] = run(subject, [c for c in cases if short == "ours" or not c.operator])
    print_table(rows)
    if arguments.json:
        arguments.json.write_text(
            json.dumps(
                {name: {case: asdict(row) for case, row in found.items()} for name, found in rows.items()}
            )
        )
    ours = rows.get("VLLMEndpoint", {})
    unmeasured = [case.name for case in cases if arguments.only != "plain" and case.name not in ours]
    return int(bool(unmeasured) or any(row.failed or row.wrong for row in ours.values()))


def run(subject: Subject, cases: Sequence[Case]) -> dict[str, Row]:
    """Create the subject in a namespace of its own, run the cases, and delete it."""
    cluster = subject.cluster
    system = Cluster(cluster.kubeconfig)
    system.kubectl("delete", "namespace", cluster.namespace, "--ignore-not-found", timeout=180)
    system.kubectl("delete", "pv", f"models-{cluster.namespace}", "--ignore-not-found")
    system.kubectl("create", "namespace", cluster.namespace)
    rows = {}
    try:
        make_volume(cluster)
        progress(f"{subject.name}: starting two workers and two frontends")
        subject.create()
        folder = Path(tempfile.mkdtemp(prefix="disruption-"))
        with running_load(base_url(subject), folder) as load:
            load.wait_for(BASELINE_ANSWERS, 120)
            baseline = load.records()
            expected = expected_texts(baseline)
            progress(f"{subject.name}: {len(baseline)} undisturbed requests; records in {folder}")
            for case in cases:
                try:
                    rows[case.name] = measure(subject, case, load, baseline, expected)
                except AssertionError as error:
                    progress(f"{subject.name}: {case.name}: not measured: {str(error)[:400]}")
                    continue
                progress(f"{subject.name}: {case.name}: {rows[case.name]}")
    finally:
        system.kubectl("delete", "namespace", cluster.namespace, "--wait=false")
        system.kubectl("delete", "pv", f"models-{cluster.namespace}", "--wait=false")
    return rows


def progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def print_table(rows: dict[str, dict[str, Row]]) -> None:
    print("\n| case | subject | requests | failed | wrong | moved | extra s (median, max) | gap s |")
    print("|---|---|---|---|---|---|---|---|")
    for case in CASES:
        for subject, found in rows.items():
            if (row := found.get(case.name)) is not None:
                extra = f"{row.extra_median:.1f}, {row.extra_max:.1f}"
                print(
                    f"| {case.name} | {subject} | {row.requests} | {row.failed} | {row.wrong} | {row.moved} "
                    f"| {extra} | {row.gap:.1f} |"
                )


if __name__ == "__main__":
    sys.exit(main())
