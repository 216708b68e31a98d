"""The Python examples of docs/guide/health-check-payloads.md."""

COMPLETE_EXAMPLE = """
import os
from dynamo import DistributedRuntime
from dynamo.vllm.health_check import get_health_check_payload

async def setup_vllm_with_health_checks():
    # Configure via environment
    os.environ["DYN_HEALTH_CHECK_ENABLED"] = "true"
    os.environ["DYN_HEALTH_CHECK_LEVEL"] = "minimal"
    os.environ["DYN_HEALTH_CHECK_INTERVAL"] = "30"  # seconds

    # Initialize runtime
    runtime = await DistributedRuntime.from_settings()
    namespace = runtime.namespace("vllm")
    component = namespace.component("inference")

    # Create endpoints
    generate_endpoint = component.endpoint("generate")

    # Get appropriate health check payload
    health_check_payload = get_health_check_payload(
        config=config,
        model_type="generate"
    )

    # Or use a custom payload
    custom_health_payload = {
        "prompt": "Test",
        "max_tokens": 1,
        "temperature": 0.0,
        "seed": 42  # For reproducibility
    }

    # Serve with health checks
    await generate_endpoint.serve_endpoint(
        handler=handler.generate,
        graceful_shutdown=True,
        metrics_labels=[("model", "gpt2")],
        health_check_payload=health_check_payload  # or custom_health_payload
    )
"""

BASIC_USAGE = """
from dynamo.vllm.health_check import get_health_check_payload

# Use defaults based on model type
health_check_payload = get_health_check_payload(
    config=config,
    model_type="generate"
)

# Serve endpoint with health check
await endpoint.serve_endpoint(
    handler=handler.generate,
    health_check_payload=health_check_payload
)
"""

CUSTOM_PAYLOAD = """
# Define custom payload
custom_payload = {
    "prompt": "What is 1+1?",
    "max_tokens": 2,
    "temperature": 0.0
}

# Pass directly to serve_endpoint
await endpoint.serve_endpoint(
    handler=handler.generate,
    health_check_payload=custom_payload  # Highest priority
)
"""

GLOBAL_DEFAULT = """
from dynamo.vllm.health_check import set_custom_health_check_payload

# Set a custom default for all endpoints
set_custom_health_check_payload({
    "prompt": "ping",
    "max_tokens": 1,
    "temperature": 0.0
})
"""

PYTHON_CONFIG = """
class Config:
    model = "gpt2"
    health_check_level = "standard"
    health_check_payload = {
        "prompt": "The weather is",
        "max_tokens": 3,
        "temperature": 0.5
    }
"""

MODEL_SPECIFIC = """
# For code models
health_payload = {
    "prompt": "def hello():",
    "max_tokens": 5,
    "temperature": 0.0
}

# For chat models
health_payload = {
    "messages": [{"role": "user", "content": "Say hi"}],
    "max_tokens": 2,
    "temperature": 0.0
}
"""
