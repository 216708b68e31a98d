"""Downloads of a revision of a model, from a hub on loopback that has two revisions."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model_hub import model_hub
from vllmendpoint_worker.engine.engine_errors import download_failure

FILES = {
    "main": {"config.json": b'{"of": "main"}', "pytorch_model.bin": b"pickled"},
    "v2": {
        "config.json": b'{"of": "v2"}',
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"pickled",
        "original/consolidated.pth": b"pickled",
    },
}
FETCH = """
import sys
from vllmendpoint_worker.model_data.hub import download_snapshot
try:
    print(download_snapshot(*sys.argv[1:]))
except OSError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def hub() -> Iterator[str]:
    with model_hub(FILES) as url:
        yield url


def fetch(url: str, home: Path, model: str, revision: str, **environ: str) -> tuple[str, str]:
    """The folder and the error, of which one is empty. A new process: the library reads variables once."""
    done = subprocess.run(
        [sys.executable, "-c", FETCH, model, revision],
        env={"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environ},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.stdout.strip(), done.stderr.strip().splitlines()[-1] if done.returncode else ""


def test_the_revision_is_downloaded_with_one_format_of_weights(hub: str, tmp_path: Path) -> None:
    folder, error = fetch(hub, tmp_path, "team/toy", "v2")
    assert not error
    names = sorted(path.name for path in Path(folder).iterdir())
    assert names == ["config.json", "model.safetensors"]
    assert json.loads((Path(folder) / "config.json").read_text()) == {"of": "v2"}
    # The cache has the revision, so the hub is not needed.
    offline = {"HF_HUB_OFFLINE": "1"}
    assert fetch("http://127.0.0.1:9", tmp_path, "team/toy", "v2", **offline) == (folder, "")


def test_pickled_weights_are_downloaded_if_the_model_has_no_others(hub: str, tmp_path: Path) -> None:
    folder, error = fetch(hub, tmp_path, "team/toy", "main")
    assert not error
    assert (Path(folder) / "pytorch_model.bin").read_bytes() == b"pickled"
    assert fetch("http://127.0.0.1:9", tmp_path, "team/toy", "main", HF_HUB_OFFLINE="1") == (folder, "")


@pytest.mark.parametrize(
    ("model", "revision", "expected"),
    [
        ("team/toy", "v3", "answered 404 Not Found. Check model.uri and model.revision."),
        ("team/gated", "main", "answered 403 Forbidden. The model is gated or private"),
    ],
)
def test_a_rejection_by_the_hub_is_explained(
    hub: str, tmp_path: Path, model: str, revision: str, expected: str
) -> None:
    _, error = fetch(hub, tmp_path, model, revision)
    assert expected in (download_failure(model, OSError(error)) or ""), error


def test_an_unreachable_hub_is_explained(tmp_path: Path) -> None:
    _, error = fetch("http://127.0.0.1:9", tmp_path, "team/toy", "v2")
    message = download_failure("team/toy", OSError(error)) or ""
    assert "http://127.0.0.1:9/api/models/team/toy/tree/v2 cannot be reached. Check DNS" in message, error


def test_a_restart_does_not_need_the_hub(hub: str, tmp_path: Path) -> None:
    folder, error = fetch(hub, tmp_path, "team/toy", "v2")
    assert not error
    assert fetch("http://127.0.0.1:9", tmp_path, "team/toy", "v2") == (folder, "")


def test_the_password_of_a_mirror_is_not_repeated(tmp_path: Path) -> None:
    _, error = fetch("http://bob:hunter2@127.0.0.1:9", tmp_path, "team/toy", "v2")
    assert "error sending request for url (http://127.0.0.1:9/api/models" in error
    assert "hunter2" not in error
