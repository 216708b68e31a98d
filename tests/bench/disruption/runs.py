"""Runs the cases against a subject. A case that cannot be measured does not end the run."""

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from tests.e2e.conftest import Cluster, first_node, make_volume

from .analysis import Row, expected_texts
from .cases import Case, remove_second_node
from .load import running_load
from .measure import NotRestored, base_url, measure
from .results import Results
from .subjects import Subject

__all__ = ["Measure", "progress", "run_cases", "started"]

Measure = Callable[[Case], Row]
BASELINE_ANSWERS: Final = 6
BASELINE_SECONDS: Final = 400
START_ATTEMPTS: Final = 2


def run_cases(
    name: str,
    cases: Sequence[Case],
    start: Callable[[], AbstractContextManager[Measure]],
    results: Results,
) -> None:
    """Measure each case that ``results`` does not contain, and record it there immediately.

    The subject is created again after a case that could not be measured or undone, because such a case may
    leave it in any state. Two failed starts in succession end the run.
    """
    remaining = [case for case in cases if not results.has(name, case.name)]
    if len(remaining) < len(cases):
        progress(f"{name}: {len(cases) - len(remaining)} of {len(cases)} cases were measured before")
    failures = 0
    while remaining:
        count = len(remaining)
        try:
            with start() as measure_case:
                failures = 0
                usable = True
                while remaining and usable:
                    case = remaining.pop(0)
                    progress(f"{name}: case {len(cases) - len(remaining)} of {len(cases)}: {case.name}")
                    usable = _measured(name, case, measure_case, results)
        except Exception as error:  # noqa: BLE001  (whatever ends one start must not end the run)
            progress(f"{name}: {_text(error)}")
            failures += len(remaining) == count
        if failures == START_ATTEMPTS:
            for case in remaining:
                results.failed(name, case.name, "the subject did not start")
            return
        if remaining:
            progress(f"{name}: creating it again for the remaining {len(remaining)} cases")


def _measured(name: str, case: Case, measure_case: Measure, results: Results) -> bool:
    """Measure and record one case. Returns whether the subject can be used for another one."""
    begun = time.monotonic()
    try:
        results.measured(name, case.name, measure_case(case))
    except NotRestored as error:
        results.measured(name, case.name, error.row)
        progress(f"{name}: {case.name}: could not be undone: {_text(error.__cause__)}")
        return False
    except Exception as error:  # noqa: BLE001  (whatever ends one case must not end the run)
        results.failed(name, case.name, _text(error))
        progress(f"{name}: {case.name}: not measured: {_text(error)}")
        return False
    progress(f"{name}: {case.name}: {results.rows[name][case.name]} ({time.monotonic() - begun:.0f} s)")
    return True


def _text(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400].replace("|", "/")


@contextmanager
def started(subject: Subject) -> Iterator[Measure]:
    """The subject under load in a namespace of its own, which is deleted afterwards."""
    cluster = subject.cluster
    system = Cluster(cluster.kubeconfig)
    _delete(system, cluster.namespace, wait=True)
    _remove_left_node(system)
    system.kubectl("create", "namespace", cluster.namespace)
    try:
        make_volume(cluster)
        progress(f"{subject.name}: starting two workers and two frontends")
        subject.create()
        folder = Path(tempfile.mkdtemp(prefix="disruption-"))
        with running_load(base_url(subject), folder) as load:
            load.wait_for(BASELINE_ANSWERS, BASELINE_SECONDS)
            baseline = load.records()
            expected = expected_texts(baseline)
            progress(f"{subject.name}: {len(baseline)} undisturbed requests; records in {folder}")
            yield lambda case: measure(subject, case, load, baseline, expected)
    finally:
        _delete(system, cluster.namespace, wait=False)


def _delete(system: Cluster, namespace: str, *, wait: bool) -> None:
    for kind, name in (("namespace", namespace), ("pv", f"models-{namespace}")):
        system.kubectl("delete", kind, name, "--ignore-not-found", f"--wait={str(wait).lower()}", timeout=240)


def _remove_left_node(system: Cluster) -> None:
    """Undo what an interrupted run may have left: a second node, and a first one that accepts no pods."""
    with contextlib.suppress(subprocess.CalledProcessError):  # there is none
        remove_second_node()
    system.kubectl("uncordon", first_node(system)["metadata"]["name"])


def progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
