"""A model of the hub at a revision: Dynamo's downloader knows none, and takes the default branch."""

from contextlib import suppress
from typing import Final

import httpx
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

__all__ = ["download_snapshot"]

_OTHER_WEIGHTS: Final = ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "original/*")
"""Not fetched where there are safetensors: the same weights once more, in the formats of other engines."""


def download_snapshot(model: str, revision: str) -> str:
    """The folder of ``model`` at ``revision`` in the hub's cache (``HF_HOME``), fetched unless it is there.

    Blocks. Raises OSError, worded as Dynamo's downloader words it (``causes`` reads that).
    """
    try:
        try:
            ignored = _ignore_patterns(model, revision)
        except (OfflineModeIsEnabled, httpx.TransportError, HfHubHTTPError) as error:
            if not _is_unavailable(error):
                raise
            # Where the cache has them they are there: a hub that is away hinders no restart.
            with suppress(LocalEntryNotFoundError):
                return str(_cached(model, revision))
            raise
        return str(snapshot_download(model, revision=revision, ignore_patterns=list(ignored)))
    except HfHubHTTPError as error:
        answer = error.response
        said = f"{answer.status_code} {answer.reason_phrase}"
        raise OSError(f"({said}) for url ({_without_query(answer.url)})") from error
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
