"""What callers lose while something fails or changes.

Two replicas and two frontends serve a load of requests: a VLLMEndpoint, and plain Dynamo as the reference.

``python -m tests.bench.disruption`` runs every case on the local cluster and prints the table.
"""
