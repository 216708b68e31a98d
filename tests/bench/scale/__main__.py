"""``python -m tests.bench.scale``: see ``--help``. Requires root to create a network namespace."""

import argparse
import json
import signal
import sys
import time
from pathlib import Path

from .control_plane import ControlPlane
from .machine import enter_network_namespace
from .scenarios import Bench, Figures
from .subjects import SUBJECTS


def measured(name: str, arguments: argparse.Namespace) -> Figures:
    figures: Figures = {}
    started = time.monotonic()

    def note(found: Figures) -> None:
        figures.update(found)
        for what, value in found.items():
            print(f"[{time.monotonic() - started:4.0f}s] {name}: {what:28} {value:10.2f}", flush=True)

    with ControlPlane() as plane:
        bench = Bench(plane, SUBJECTS[name], arguments.endpoints, frontend=arguments.frontend)
        note(bench.without_endpoints())
        note(bench.burst(arguments.burst_seconds))
        for what, count in sorted(bench.burst_requests.counts.items()):
            print(f"    {what:40} {count:7}")
        note(bench.rest(arguments.rest_seconds))
        if name == "ours":
            note(bench.stalls())
        note(bench.stop())
        note(bench.restart())
        if name == "ours":
            note(bench.failover())
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.scale", description=__doc__)
    parser.add_argument(
        "--endpoints", type=int, default=1000, help="number of endpoints (default: %(default)s)"
    )
    parser.add_argument(
        "--only", choices=list(SUBJECTS), help="measure one operator instead of ours and ideal"
    )
    parser.add_argument("--no-frontend", dest="frontend", action="store_false", help="frontend.mode: None")
    parser.add_argument("--burst-seconds", type=float, default=500, help="(default: %(default)s)")
    parser.add_argument("--rest-seconds", type=float, default=60, help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # stops all child processes
    enter_network_namespace("tests.bench.scale", sys.argv[1:])
    names = [arguments.only] if arguments.only else ["ours", "ideal"]
    figures = {name: measured(name, arguments) for name in names}
    print(f"\n{arguments.endpoints} endpoints{'' if arguments.frontend else ', no frontends'}")
    print(f"{'':30}" + "".join(f"{name:>10}" for name in names) + ("     ratio" if len(names) == 2 else ""))
    for what in figures[names[0]]:
        values = [figures[name].get(what) for name in names]
        line = "".join(f"{'' if value is None else f'{value:.2f}':>10}" for value in values)
        if len(values) == 2 and values[0] is not None and values[1]:
            line += f"{values[0] / values[1]:10.2f}"
        print(f"{what:30}{line}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
