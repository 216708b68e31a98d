"""Log lines and their fields."""

import asyncio
import json
import logging
from collections.abc import Iterator

import pytest

from vllmendpoint_operator.logs import configure, reconciling

log = logging.getLogger("vllmendpoint_operator.test")


@pytest.fixture
def restored() -> Iterator[None]:
    """Restores the root logger after the test."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    others = {name: logging.getLogger(name).level for name in ("kopf", "aiohttp.access")}
    yield
    root.handlers, root.level = handlers, level
    for name, was in others.items():
        logging.getLogger(name).setLevel(was)


def test_lines_of_a_reconcile_carry_its_endpoint_and_id(restored, capsys) -> None:
    configure("INFO", "json")
    log.info("before")
    with reconciling(("team-a", "smollm")):
        logging.getLogger("aiohttp.client").warning("of a library")
        log.info("within %s", "it", extra={"pod_uid": "u"})
    with reconciling(("team-a", "smollm")):
        log.info("again")
    log.info("after")
    before, library, within, again, after = map(json.loads, capsys.readouterr().err.splitlines())
    for outside in (before, after):
        assert "endpoint" not in outside
        assert "reconcile" not in outside
    assert library["endpoint"] == within["endpoint"] == "team-a/smollm"
    assert library["reconcile"] == within["reconcile"] != again["reconcile"]
    assert (within["message"], within["pod_uid"], within["level"]) == ("within it", "u", "INFO")


def test_parallel_reconciles_have_their_own_context(restored, capsys) -> None:
    configure("INFO", "json")

    async def one(name: str, turn: asyncio.Barrier) -> None:
        with reconciling(("team-a", name)):
            await turn.wait()
            log.info(name)

    async def both() -> None:
        turn = asyncio.Barrier(2)
        await asyncio.gather(one("a", turn), one("b", turn))

    asyncio.run(both())
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {line["endpoint"] for line in lines} == {"team-a/a", "team-a/b"}
    assert all(line["endpoint"] == f"team-a/{line['message']}" for line in lines)


def test_a_task_that_outlives_its_reconcile_keeps_only_the_endpoint(restored, capsys) -> None:
    configure("INFO", "json")

    async def reconcile() -> None:
        async def stream(reconcile_ended: asyncio.Event) -> None:
            await reconcile_ended.wait()
            log.info("lost")

        reconcile_ended = asyncio.Event()
        with reconciling(("team-a", "smollm")):
            task = asyncio.create_task(stream(reconcile_ended))
            await asyncio.sleep(0)
        reconcile_ended.set()
        await task

    asyncio.run(reconcile())
    line = json.loads(capsys.readouterr().err)
    assert line["endpoint"] == "team-a/smollm"
    assert "reconcile" not in line


def test_text_has_the_same_fields_and_debug_excludes_libraries(restored, capsys) -> None:
    configure("DEBUG", "text")
    with reconciling(("team-a", "smollm")):
        log.info("hello")
        logging.getLogger("kopf.objects").info("an object as a whole")
    output = capsys.readouterr().err
    assert " hello endpoint=team-a/smollm reconcile=" in output
    assert "an object" not in output
