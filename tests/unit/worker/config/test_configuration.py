"""Which change of the files is noticed, whatever happens meanwhile."""

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
def made(tmp_path: Path) -> Configuration:
    write(tmp_path, "one")
    sources = ConfigSources({"VLLMENDPOINT_SETTINGS_DIR": str(tmp_path)})
    return Configuration(sources, WorkerState(worker_version="test"))


async def test_a_change_while_a_script_is_imported_is_not_lost(made: Configuration, tmp_path: Path) -> None:
    assert (await made.load()).settings_hash == "one"
    write(tmp_path, "two")  # the import takes its time
    neighbour = tmp_path / "neighbour.py"
    neighbour.write_text("")
    made.watch(frozenset({neighbour}))
    await asyncio.wait_for(made.wait_for_change(), 10)
    assert (await made.load()).settings_hash == "two"


async def test_that_imported_files_count_is_no_change(made: Configuration, tmp_path: Path) -> None:
    await made.load()
    neighbour = tmp_path / "neighbour.py"
    neighbour.write_text("")
    made.watch(frozenset({neighbour}))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(made.wait_for_change(), 4 * module.POLL_SECONDS)
    neighbour.write_text("changed = 1")
    await asyncio.wait_for(made.wait_for_change(), 10)


async def test_what_changes_while_it_is_read_is_read_again(
    made: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else settings of before might meet a script of after."""
    load, reads = ConfigSources.load, 0

    def slow(self: ConfigSources) -> LoadedConfiguration:
        nonlocal reads
        reads += 1
        loaded = load(self)
        if reads == 1:
            write(tmp_path, "two")
        return loaded

    monkeypatch.setattr(ConfigSources, "load", slow)
    assert (await made.load()).settings_hash == "two"
    assert reads == 2


async def test_calls_of_handlers_that_hang_keep_no_change_from_being_seen(
    made: Configuration, tmp_path: Path
) -> None:
    """As ``asyncio.to_thread`` in a handler, on every thread that it has."""
    await made.load()
    released = threading.Event()
    hung = [asyncio.create_task(asyncio.to_thread(released.wait, 60)) for _ in range(64)]
    await asyncio.sleep(0.1)
    write(tmp_path, "two")
    try:
        await asyncio.wait_for(made.wait_for_change(), 10)
    finally:
        released.set()
        await asyncio.gather(*hung)


def test_a_signal_may_come_in_the_middle_of_an_update() -> None:
    state = WorkerState(worker_version="test")
    with state._lock:
        state.update(not_ready_reason="the worker is ending")
    assert state.snapshot.not_ready_reason == "the worker is ending"
