"""The worker's image as SageMaker starts it: with ``serve``, the guide's environment, and model data."""

import json

import pytest

from tests.e2e.conftest import ROOT, TOY, Cluster, post, worker_image
from vllmendpoint_worker.options.sagemaker import DEFAULT_MODEL_PATH

pytestmark = pytest.mark.timeout(600)
NAME = "container"
MODELS = "/models"


def test_the_image_serves_with_the_environment_of_create_model(cluster: Cluster) -> None:
    script = (ROOT / "tests/guide/quick_start.py").read_text()
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "model-data"},
            "data": {"model.py": script},
        }
    )
    environment = {
        "SM_VLLM_MODEL": f"{MODELS}/{TOY.rpartition('/')[2]}",
        "HUGGING_FACE_HUB_TOKEN": "hf_your_token_here",
        "CUSTOM_SCRIPT_FILENAME": "model.py",
        # An engine for a small machine.
        "SM_VLLM_ENFORCE_EAGER": "true",
        "SM_VLLM_MAX_MODEL_LEN": "512",
        "SM_VLLM_MAX_NUM_SEQS": "8",
        "SM_VLLM_KV_CACHE_MEMORY_BYTES": "67108864",
        # Hide Kubernetes: the kubelet sets this variable in every container.
        "KUBERNETES_SERVICE_HOST": "",
    }
    container = {
        "name": "main",
        "image": worker_image(),
        "args": ["serve"],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "ports": [{"containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/ping", "port": 8080}, "periodSeconds": 2},
        "volumeMounts": [
            {"name": "data", "mountPath": DEFAULT_MODEL_PATH},
            {"name": "models", "mountPath": MODELS},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    volumes = [
        {"name": "data", "configMap": {"name": "model-data"}},
        {"name": "models", "persistentVolumeClaim": {"claimName": "models"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
    ]
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": NAME},
            "spec": {"containers": [container], "volumes": volumes, "terminationGracePeriodSeconds": 5},
        }
    )
    cluster.kubectl("wait", "--for=condition=Ready", f"pod/{NAME}", "--timeout=300s", timeout=330)
    with cluster.forward(f"pod/{NAME}", 8080) as url:
        status, body = post(f"{url}/invocations", {})
        assert (status, json.loads(body)) == (200, {"predictions": ["custom response"]})
        assert json.loads(post(f"{url}/ping", {})[1]) == {"status": "healthy", "custom": True}
        request = {"model": environment["SM_VLLM_MODEL"], "prompt": "hello", "max_tokens": 3}
        assert post(f"{url}/v1/completions", request)[0] == 200
