"""Runs the cases against both subjects on the deployed local cluster, and prints one table.

Each row is written to a file as soon as it is measured. A case that cannot be measured is listed with the
reason, and the others are still measured. ``--resume`` continues an interrupted run.
"""

import argparse
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from tests.e2e.conftest import ROOT, Cluster
from tests.project_cache import CACHE

from .cases import CASES
from .results import Results
from .runs import progress, run_cases, started
from .subjects import Ours, Plain, Subject


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.disruption", description=__doc__)
    parser.add_argument("--only", choices=("ours", "plain"), help="one subject instead of both")
    parser.add_argument("--case", action="append", default=[], help="beginning of a case's name; repeatable")
    parser.add_argument("--json", type=Path, default=CACHE / "disruption.json", help="file for the rows")
    parser.add_argument("--resume", action="store_true", help="measure only what the file does not contain")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # deletes what the run created
    results = Results(arguments.json, version())
    if arguments.resume:
        try:
            results.resume()
        except ValueError as error:
            parser.error(str(error))
    cases = [c for c in CASES if not arguments.case or any(c.name.startswith(p) for p in arguments.case)]
    kubeconfig = subprocess.run(
        [CACHE / "bin/cluster", "kubeconfig"], capture_output=True, text=True, check=True
    ).stdout.strip()
    subjects: list[Subject] = [
        create(Cluster(kubeconfig, f"disruption-{short}"))
        for create, short in ((Ours, "ours"), (Plain, "plain"))
        if arguments.only in (None, short)
    ]
    possible = {
        subject.name: [case for case in cases if subject.name == Ours.name or not case.operator]
        for subject in subjects
    }
    begun = time.monotonic()
    try:
        for subject in subjects:
            start = partial(started, subject)
            run_cases(subject.name, possible[subject.name], start, results)
    finally:
        for name, wanted in possible.items():
            results.complete(name, [case.name for case in wanted])
        names = [subject.name for subject in subjects]
        table = results.lines(names, [case.name for case in cases])
        if len(subjects) == 2:
            table += ["", *results.side_by_side(Ours.name, Plain.name, [case.name for case in cases])]
        progress(f"{(time.monotonic() - begun) / 60:.0f} minutes; rows in {arguments.json}")
        print("\n" + "\n".join(table), flush=True)
    bad = [row for row in results.rows.get(Ours.name, {}).values() if row.failed or row.wrong]
    return int(bool(bad) or any(results.unmeasured.values()))


def version() -> str:
    """The commit of this checkout, which the cluster runs."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
