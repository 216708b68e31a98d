"""The contract of VLLMEndpoint: spec, status, worker settings and worker report."""
