"""The pod side of VLLMEndpoint: Dynamo + vLLM, one health-check payload, one choice of handlers."""
