"""Downloads a model from the hub at a revision. Dynamo's downloader supports only the default branch."""

from contextlib import suppress
from typing import Final

import httpx
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

__all__ = ["download_snapshot"]

_OTHER_WEIGHTS: Final = ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "original/*")
"""Not downloaded if the model has safetensors: the same weights in the formats of other engines."""


def download_snapshot(model: str, revision: str) -> str:
    """The folder of ``model`` at ``revision`` in the hub's cache (``HF_HOME``), downloaded if it is missing.

    Blocks. Raises OSError in the words of Dynamo's downloader, which ``engine_errors`` parses.
    """
    try:
        try:
            ignored = _ignore_patterns(model, revision)
        except (OfflineModeIsEnabled, httpx.TransportError, HfHubHTTPError) as error:
            if not _is_unavailable(error):
                raise
            # A worker must be able to restart with the cache while the hub is unavailable.
            with suppress(LocalEntryNotFoundError):
                return str(_cached(model, revision))
            raise
        return str(snapshot_download(model, revision=revision, ignore_patterns=list(ignored)))
    except HfHubHTTPError as error:
        response = error.response
        status = f"{response.status_code} {response.reason_phrase}"
        raise OSError(f"({status}) for url ({_without_query(response.url)})") from error
    except httpx.TransportError as error:
        raise OSError(f"error sending request for url ({_without_query(error.request.url)})") from error


def _cached(model: str, revision: str) -> str:
    return snapshot_download(
        model, revision=revision, ignore_patterns=list(_OTHER_WEIGHTS), local_files_only=True
    )


def _ignore_patterns(model: str, revision: str) -> tuple[str, ...]:
    files = HfApi().list_repo_files(model, revision=revision)
    return _OTHER_WEIGHTS if any(name.endswith(".safetensors") for name in files) else ()


def _is_unavailable(error: Exception) -> bool:
    return not isinstance(error, HfHubHTTPError) or error.response.status_code >= 500


def _without_query(url: httpx.URL) -> str:
    return str(url.copy_with(query=None, userinfo=b""))
