"""The payloads of docs/guide/health-check-payloads.md that the tests of compat expect."""

PAYLOAD = {"prompt": "What is 1+1?", "max_tokens": 2, "temperature": 0.0}
OTHER = {"prompt": "ping", "max_tokens": 1, "temperature": 0.0}
MINIMAL = {"prompt": "1", "max_tokens": 1, "temperature": 0.0, "stream": False, "_health_check": True}
STANDARD = MINIMAL | {"prompt": "The sky is", "max_tokens": 5, "temperature": 0.7}
CHAT = {
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 1,
    "temperature": 0.0,
    "stream": False,
    "_health_check": True,
}
MARKERS = {"_health_check": True, "_HEALTH_CHECK": True}
