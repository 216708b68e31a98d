"""The ports of NIXL's side channel, which are checked before the engine starts."""

import socket

import pytest

from tests.free_port import free_port
from vllmendpoint_worker.engine.side_channel import check_side_channel
from vllmendpoint_worker.errors import EngineStartError


def test_free_ports_are_accepted_and_released() -> None:
    ports = [free_port(), free_port()]
    check_side_channel("127.0.0.1", ports)
    check_side_channel("localhost", ports)


def test_the_port_of_any_rank_that_is_in_use_ends_the_start() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(EngineStartError) as raised:
            check_side_channel("127.0.0.1", [free_port(), port])
    message = str(raised.value)
    assert f"127.0.0.1 port {port} (Address already in use)" in message
    assert "VLLM_NIXL_SIDE_CHANNEL_PORT in worker.podTemplate" in message


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_the_pod_does_not_have_ends_the_start(host: str) -> None:
    with pytest.raises(EngineStartError, match=f"{host} port 5600"):
        check_side_channel(host, [5600])
