"""Checks the ports of NIXL's side channel before the engine starts.

vLLM binds them in a thread. If that fails, only the thread ends: the worker never becomes ready, and no error
is reported.
"""

from collections.abc import Iterable

from vllmendpoint_worker.errors import EngineStartError
from vllmendpoint_worker.process.listening import listeners

__all__ = ["check_side_channel"]


def check_side_channel(host: str, ports: Iterable[int]) -> None:
    """Bind and release each port. Raises EngineStartError."""
    for port in ports:
        try:
            sockets = listeners(host, port)
        except OSError as error:
            raise EngineStartError(
                f"NIXL's side channel cannot be bound to {host} port {port} ({error.strerror}): set "
                "VLLM_NIXL_SIDE_CHANNEL_PORT in worker.podTemplate to a free port from 5600 to 5999, and "
                "VLLM_NIXL_SIDE_CHANNEL_HOST, if it is set, to an address of the pod"
            ) from error
        for listener in sockets:
            listener.close()
