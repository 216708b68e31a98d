"""The cluster side of VLLMEndpoint."""
