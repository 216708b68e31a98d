"""Which changes of files are detected, also during other work."""

import asyncio
import json
import threading
from pathlib import Path

import pytest

from vllmendpoint_worker.config import configuration as module
from vllmendpoint_worker.config.configuration import Configuration
from vllmendpoint_worker.config.sources import ConfigSources, LoadedConfiguration
from vllmendpoint_worker.serving.state import WorkerState


def write(folder: Path, name: str) -> None:
    new = folder / "new"
    new.write_text(json.dumps({"hash": name}))
    new.replace(folder / "settings.json")


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    write(tmp_path, "one")
    sources = ConfigSources({"VLLMENDPOINT_SETTINGS_DIR": str(tmp_path)})
    return Configuration(sources, WorkerState(worker_version="test"))


async def test_a_change_during_the_import_of_a_script_is_detected(
    configuration: Configuration, tmp_path: Path
) -> None:
    assert (await configuration.load()).settings_hash == "one"
    write(tmp_path, "two")  # while the script is imported
    neighbour = tmp_path / "neighbour.py"
    neighbour.write_text("")
    configuration.watch(frozenset({neighbour}))
    await asyncio.wait_for(configuration.wait_for_change(), 10)
    assert (await configuration.load()).settings_hash == "two"


async def test_watching_more_files_is_not_a_change(configuration: Configuration, tmp_path: Path) -> None:
    await configuration.load()
    neighbour = tmp_path / "neighbour.py"
    neighbour.write_text("")
    configuration.watch(frozenset({neighbour}))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(configuration.wait_for_change(), 4 * module.POLL_SECONDS)
    neighbour.write_text("changed = 1")
    await asyncio.wait_for(configuration.wait_for_change(), 10)


async def test_settings_that_change_during_the_read_are_read_again(
    configuration: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise old settings could be combined with a new script."""
    load, reads = ConfigSources.load, 0

    def slow(self: ConfigSources) -> LoadedConfiguration:
        nonlocal reads
        reads += 1
        loaded = load(self)
        if reads == 1:
            write(tmp_path, "two")
        return loaded

    monkeypatch.setattr(ConfigSources, "load", slow)
    assert (await configuration.load()).settings_hash == "two"
    assert reads == 2


async def test_a_change_is_detected_while_calls_of_handlers_hang(
    configuration: Configuration, tmp_path: Path
) -> None:
    """The calls occupy every thread of ``asyncio.to_thread``."""
    await configuration.load()
    released = threading.Event()
    hung = [asyncio.create_task(asyncio.to_thread(released.wait, 60)) for _ in range(64)]
    await asyncio.sleep(0.1)
    write(tmp_path, "two")
    try:
        await asyncio.wait_for(configuration.wait_for_change(), 10)
    finally:
        released.set()
        await asyncio.gather(*hung)


def test_a_signal_handler_can_update_the_state_during_an_update() -> None:
    state = WorkerState(worker_version="test")
    with state._lock:
        state.update(not_ready_reason="the worker is ending")
    assert state.snapshot.not_ready_reason == "the worker is ending"
