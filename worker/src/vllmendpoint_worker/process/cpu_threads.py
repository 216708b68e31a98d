"""Number of threads that an engine on a CPU computes with.

By default, vLLM binds the threads of every engine to the same cores, starting with the first, because it sees
the whole node and not the other pods. An engine that starts next to a busy one then gets almost no CPU time.
The CPU image therefore turns binding off (``VLLM_CPU_OMP_THREADS_BIND=nobind``), and the number of threads
follows the CPU request, by which the node's scheduler divides its cores.
"""

from collections.abc import Mapping
from typing import Final

from vllmendpoint_api import names

__all__ = ["ENV_THREADS", "omp_threads"]

ENV_THREADS: Final = "OMP_NUM_THREADS"
_ENV_BIND: Final = "VLLM_CPU_OMP_THREADS_BIND"


def omp_threads(environ: Mapping[str, str], available: int) -> int | None:
    """The value for ``OMP_NUM_THREADS``; None if the user or vLLM decides.

    ``available``: the CPUs that the process may run on, which is the value if the container has no CPU
    request.
    """
    if environ.get(_ENV_BIND) != "nobind" or environ.get(ENV_THREADS, "").strip():
        return None
    requested = environ.get(names.ENV_CPU_REQUEST, "").strip()
    if requested.isdecimal() and int(requested) > 0:
        return min(int(requested), available)
    return max(1, available)
