from tests.e2e.conftest import cluster, deployed  # noqa: F401  (the same cluster, a namespace for each module)
