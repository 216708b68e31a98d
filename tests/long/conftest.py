import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import (  # noqa: F401  (the same cluster, a namespace for each module)
    ROOT,
    cluster,
    deployed,
    gpu,
    host,
)
from tests.integration.conftest import (  # noqa: F401  (a control plane, no kubelet)
    api,
    make_endpoint,
    namespace,
    operate,
    until_fixture,
)
from tests.project_cache import CACHE
from tests.worker.conftest import make_worker, minilm, toy_model  # noqa: F401  (workers on loopback)


@pytest.fixture(scope="session")
def chat_model() -> Path:
    """The chat model of hack/model.py, created on first use."""
    subprocess.run([sys.executable, str(ROOT / "hack" / "model.py"), "chat"], timeout=600, check=True)
    return CACHE / "models" / "SmolLM2-135M-Instruct"
