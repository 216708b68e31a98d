from tests.e2e.conftest import cluster, deployed  # noqa: F401  (the same cluster, a namespace for each module)
from tests.worker.conftest import make_worker, toy_model  # noqa: F401  (workers on loopback)
