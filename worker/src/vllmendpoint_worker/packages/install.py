"""Installs the packages that the user asks for, before anything of the user's or of vLLM's is imported.

By pip, into a folder below ``$XDG_CACHE_HOME``, since the image may be read-only: in a pod that is an
emptyDir, which a restart of the container keeps. The packages of the image stay as they are: what needs torch
gets the engine's, and what needs another torch is refused.
"""

import asyncio
import importlib
import logging
import os
import shutil
import signal
import site
import sys
import sysconfig
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from vllmendpoint_api import Problem
from vllmendpoint_worker.errors import PackagesError
from vllmendpoint_worker.process.backoff import pause
from vllmendpoint_worker.process.shutdown import PROCESS_GROUPS

from .image_packages import CONSTRAINTS, ImagePackages
from .pip_output import redact, summarize_failure
from .requirements import WHEELS_FOLDER, Requirements, read_requirements

__all__ = ["INSTALL_SECONDS", "Packages", "packages_folder"]

logger = logging.getLogger(__name__)

INSTALL_SECONDS: Final = 600.0
"""Bound on one installation. What pip has downloaded until then is in its cache the next time."""

_LINE_BYTES: Final = 1024 * 1024
_LINES: Final = 5000
_LOGGED_LINES: Final = 40
_DONE: Final = "installed"
_NEW: Final = ".new"
_OPTIONS: Final = (
    "--no-input", "--disable-pip-version-check", "--no-color", "--progress-bar=off",
    "--no-warn-script-location", "--no-warn-conflicts",
)  # fmt: skip
_CONFLICTING_VARIABLES: Final = (
    "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_PYTHON", "PIP_FORCE_REINSTALL",
    "PIP_IGNORE_INSTALLED", "PIP_DRY_RUN", "PIP_REQUIRE_VIRTUALENV", "PIP_QUIET",
)  # fmt: skip
"""Variables of pip's that say otherwise than the worker's options, or hide the cause of an error."""


def packages_folder(environ: Mapping[str, str]) -> Path:
    """Where installations are kept, each in a folder of its own."""
    home = environ.get("HOME", "").strip() or tempfile.gettempdir()
    cache = environ.get("XDG_CACHE_HOME", "").strip() or f"{home}/.cache"
    return Path(cache) / "vllmendpoint" / "packages"


class Packages:
    """``environ``: the worker's; ``seconds``: the bound on one installation."""

    def __init__(self, environ: Mapping[str, str], seconds: float = INSTALL_SECONDS) -> None:
        self._environ = environ
        self._seconds = seconds
        self._folder = packages_folder(environ)

    async def wait_until_installed(
        self, refuse: Callable[[Problem], None], tell: Callable[[str], None]
    ) -> None:
        """Return when all that is asked for can be imported. Until then say why it cannot, and try again, for
        ever: the file may be corrected, or the index come back.

        ``tell`` gets one line of progress.
        """
        failures = 0
        while (wanted := await asyncio.to_thread(read_requirements, self._environ)) is not None:
            problem = wanted if isinstance(wanted, Problem) else await self._attempt(wanted, tell)
            if problem is None:
                return
            refuse(problem)
            failures += 1
            await asyncio.sleep(pause(failures))

    async def _attempt(self, wanted: Requirements, tell: Callable[[str], None]) -> Problem | None:
        """What is wrong, or None where everything can be imported now."""
        try:
            image = await asyncio.to_thread(ImagePackages)
            folder = self._folder / f"{wanted.digest[:32]}-{image.fingerprint[:16]}"
            if (folder / _DONE).is_file():
                logger.info("Packages of %s: installed before", wanted.field)
            else:
                await self._install(wanted, image, folder, tell)
        except PackagesError as error:
            return wanted.problem(error.what, error.fix)
        except OSError as error:
            what = f"cannot be installed into {self._folder} ({error.strerror})"
            return wanted.problem(what, "set XDG_CACHE_HOME to a folder on a writable volume")
        for path in _import_paths(folder):
            site.addsitedir(path)  # at the end of the path: the image's own packages come first
        importlib.invalidate_caches()
        return None

    async def _install(
        self, wanted: Requirements, image: ImagePackages, folder: Path, tell: Callable[[str], None]
    ) -> None:
        """``folder`` is there once all of it is. Raises PackagesError or OSError."""
        began = time.monotonic()
        new = Path(await asyncio.to_thread(_new_folder, self._folder))
        try:
            described, installed = new / "image", new / "packages"
            await asyncio.to_thread(image.write_metadata, described)
            options = ["--prefix", str(installed), "--constraint", str(described / CONSTRAINTS)]
            async with asyncio.timeout(self._seconds):
                await self._install_by_pip(wanted, options, described, tell)
            await asyncio.to_thread(_keep, installed, folder)
        except TimeoutError as error:
            raise PackagesError(
                f"was not installed within {self._seconds:.0f} s",
                f"see that the package index answers, or put wheels into {WHEELS_FOLDER}/; it is tried again",
            ) from error
        finally:
            await asyncio.to_thread(shutil.rmtree, new, ignore_errors=True)
        logger.info("Packages of %s: installed in %.1f s", wanted.field, time.monotonic() - began)

    async def _install_by_pip(
        self, wanted: Requirements, options: Sequence[str], described: Path, tell: Callable[[str], None]
    ) -> None:
        """From the wheels beside the file, without an index; where they do not suffice, with it."""
        environ = {name: value for name, value in self._environ.items() if name not in _CONFLICTING_VARIABLES}
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(described), environ.get("PYTHONPATH", "")]))
        links = () if wanted.wheels is None else (f"--find-links={wanted.wheels}",)
        for more in ((*links, "--no-index"), links) if links else (links,):
            command = [*_OPTIONS, *options, *wanted.arguments, *more]
            code, lines = await _pip(command, environ, wanted.folder, tell)
            if code == 0:
                return
        for line in lines[-_LOGGED_LINES:]:
            logger.error("pip: %s", redact(line))
        sentence, fix = summarize_failure("\n".join(lines))
        raise PackagesError(f"cannot be installed: {sentence}", fix)


async def _pip(
    arguments: Sequence[str], environ: Mapping[str, str], folder: Path, tell: Callable[[str], None]
) -> tuple[int, list[str]]:
    """Run ``pip install`` in a process group of its own: its exit status and its output.

    Raises PackagesError.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "pip", "install", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environ,
            cwd=folder,
            limit=_LINE_BYTES,
            start_new_session=True,
        )
    except OSError as error:
        what = f"cannot be installed: pip cannot be started in {folder} ({error.strerror})"
        fix = "see that the pod's user may read that folder, and execute Python"
        raise PackagesError(what, fix) from error
    lines: deque[str] = deque(maxlen=_LINES)
    PROCESS_GROUPS.add(process.pid)
    try:
        assert process.stdout is not None
        async for line in _lines_of(process.stdout):
            lines.append(line)
            if line.startswith(("Collecting ", "Installing collected", "  Downloading ", "Processing ")):
                tell(f"packages: {redact(line.strip())[:200]}")
        return await process.wait(), list(lines)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        PROCESS_GROUPS.discard(process.pid)


async def _lines_of(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Without those that are longer than the stream's limit."""
    while True:
        try:
            raw = await stream.readline()
        except ValueError:
            continue
        if not raw:
            return
        yield raw.decode(errors="replace").rstrip()


def _new_folder(folder: Path) -> str:
    """A folder to install to. Those that were left behind when a container was killed are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in folder.glob(f"*{_NEW}"):
        if time.time() - each.stat().st_mtime > 2 * INSTALL_SECONDS:
            shutil.rmtree(each, ignore_errors=True)
    return tempfile.mkdtemp(suffix=_NEW, dir=folder)


def _keep(installed: Path, folder: Path) -> None:
    installed.mkdir(exist_ok=True)  # pip makes none where nothing was missing
    (installed / _DONE).touch()
    try:
        installed.rename(folder)
    except OSError:
        if not (folder / _DONE).is_file():  # another worker has just installed the same
            raise


def _import_paths(folder: Path) -> list[str]:
    """As pip derives them from ``--prefix``."""
    scheme = sysconfig.get_preferred_scheme("prefix")
    base = {"base": str(folder), "platbase": str(folder)}
    paths = [sysconfig.get_path(name, scheme, base) for name in ("purelib", "platlib")]
    return [path for path in dict.fromkeys(paths) if Path(path).is_dir()]
