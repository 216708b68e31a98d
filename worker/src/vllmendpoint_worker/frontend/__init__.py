"""The frontend: Dynamo's HTTP server and router in one process with a prober and the report server.

``python -m vllmendpoint_worker.frontend [arguments of dynamo.frontend]``. It must start in about a second, so
it imports neither vLLM nor torch. See docs/decisions/0039-frontends-probe-and-report.md.
"""
