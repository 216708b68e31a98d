"""Number of threads of an engine on a CPU."""

import pytest

from vllmendpoint_api import names
from vllmendpoint_worker.process.cpu_threads import omp_threads

NOBIND = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@pytest.mark.parametrize(
    ("environ", "available", "threads"),
    [
        ({}, 8, None),
        ({"VLLM_CPU_OMP_THREADS_BIND": "auto", names.ENV_CPU_REQUEST: "2"}, 8, None),
        ({"VLLM_CPU_OMP_THREADS_BIND": "0-3", names.ENV_CPU_REQUEST: "2"}, 8, None),
        (NOBIND | {"OMP_NUM_THREADS": "3", names.ENV_CPU_REQUEST: "2"}, 8, None),
        (NOBIND | {names.ENV_CPU_REQUEST: "2"}, 8, 2),
        (NOBIND | {names.ENV_CPU_REQUEST: "16"}, 8, 8),
        (NOBIND | {names.ENV_CPU_REQUEST: "0"}, 8, 8),
        (NOBIND | {names.ENV_CPU_REQUEST: ""}, 8, 8),
        (NOBIND, 8, 8),
    ],
    ids=["GPU", "vLLM binds", "the user binds", "the user's number", "request", "more than there are"]
    + ["no request", "empty", "outside Kubernetes"],
)
def test_threads_follow_the_request_unless_the_user_decides(environ, available, threads):
    assert omp_threads(environ, available) == threads
