"""HTTP requests to the health and metrics ports of an operator."""

import urllib.error
import urllib.request


def http_get(port: int, path: str) -> tuple[int, str]:
    """Status and body of a response from 127.0.0.1; status 0 without a response within 5 s."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except urllib.error.URLError:
        return 0, ""


def metrics_text(port: int) -> str:
    """The metrics that a scrape returns."""
    status, text = http_get(port, "/metrics")
    assert status == 200, text
    return text
