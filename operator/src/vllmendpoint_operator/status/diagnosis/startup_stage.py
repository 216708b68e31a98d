"""The start-up stage of a worker as part of a message."""

import math
import re
from typing import Final

from vllmendpoint_operator.observe.snapshot import Pod

__all__ = ["startup_stage"]

_BYTES: Final = re.compile(r"(\d+) of (\d+) bytes")


def startup_stage(pod: Pod) -> str:
    """``: stage LoadingWeights (3 of 8 shards) since 11:50:00 UTC``; empty without a report of a start-up."""
    report = pod.stream.report
    if report is None or not pod.stream.connected or report.started:
        return ""
    detail = f" ({_coarse(report.stage.detail)})" if report.stage.detail else ""
    # A time of day, not a duration: a message that changes every second would be written every second.
    return f": stage {report.stage.name}{detail} since {report.stage.since:%H:%M:%S} UTC"


def _coarse(detail: str) -> str:
    """A count of bytes in steps of 10 %, so that a download does not cause a status write per second."""
    found = _BYTES.search(detail)
    if found is None or not int(found[2]):
        return detail
    done, total = int(found[1]), int(found[2])
    tenths = min(done * 10 // total, 10)
    size = f"{total / 1e9:.1f} GB" if total >= 1e9 else f"{math.ceil(total / 1e6)} MB"
    return detail.replace(found[0], f"{tenths * 10} % of {size}")
