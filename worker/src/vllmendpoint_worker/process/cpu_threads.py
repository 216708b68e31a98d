"""How many threads an engine on a CPU computes with.

vLLM's own default binds the threads of every engine to the same cores, beginning with the first, since it
sees the whole node and not the other pods: a starting engine then gets next to no time beside a busy one. So
the CPU image turns binding off (``VLLM_CPU_OMP_THREADS_BIND=nobind``), and the number of threads follows the
CPU request: the node's scheduler shares its cores by the requests.
"""

from collections.abc import Mapping
from typing import Final

from vllmendpoint_api import names

__all__ = ["ENV_THREADS", "omp_threads"]

ENV_THREADS: Final = "OMP_NUM_THREADS"
_ENV_BIND: Final = "VLLM_CPU_OMP_THREADS_BIND"


def omp_threads(environ: Mapping[str, str], available: int) -> int | None:
    """What ``OMP_NUM_THREADS`` is to be; None where it is the user's or vLLM's to decide.

    ``available``: CPUs that the process may run on, the number where the container has no CPU request.
    """
    if environ.get(_ENV_BIND) != "nobind" or environ.get(ENV_THREADS, "").strip():
        return None
    requested = environ.get(names.ENV_CPU_REQUEST, "").strip()
    if requested.isdecimal() and int(requested) > 0:
        return min(int(requested), available)
    return max(1, available)
