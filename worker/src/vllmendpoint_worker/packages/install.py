"""Installs the packages that the user requests, before vLLM and the user's code are imported.

pip installs into a folder below ``$XDG_CACHE_HOME``, because the image may be read-only. In a pod that is an
emptyDir, which survives a restart of the container. The packages of the image do not change: a package that
requires torch uses the engine's, and a package that requires another torch is rejected. See
``docs/decisions/0029-packages-with-pip.md``.
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

__all__ = ["INSTALL_SECONDS", "Packages", "packages_folder", "run_pip"]

logger = logging.getLogger(__name__)

INSTALL_SECONDS: Final = 600.0
"""Time limit of one installation. The next attempt uses pip's cache."""

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
"""Variables of pip that conflict with the worker's options, or hide the cause of an error."""


def packages_folder(environ: Mapping[str, str]) -> Path:
    """The folder of all installations. Each has a subfolder."""
    home = environ.get("HOME", "").strip() or tempfile.gettempdir()
    cache = environ.get("XDG_CACHE_HOME", "").strip() or f"{home}/.cache"
    return Path(cache) / "vllmendpoint" / "packages"


class Packages:
    """``environ``: the worker's environment; ``seconds``: time limit of one installation."""

    def __init__(self, environ: Mapping[str, str], seconds: float = INSTALL_SECONDS) -> None:
        self._environ = environ
        self._seconds = seconds
        self._folder = packages_folder(environ)

    async def wait_until_installed(
        self, reject: Callable[[Problem], None], report_progress: Callable[[str], None]
    ) -> None:
        """Return when all requested packages can be imported. Until then, report the problem and retry
        without limit, because the user may correct the file and the package index may recover.

        ``report_progress`` receives one line of text.
        """
        failures = 0
        while (requirements := await asyncio.to_thread(read_requirements, self._environ)) is not None:
            problem = (
                requirements
                if isinstance(requirements, Problem)
                else await self._attempt(requirements, report_progress)
            )
            if problem is None:
                return
            reject(problem)
            failures += 1
            await asyncio.sleep(pause(failures))

    async def _attempt(
        self, requirements: Requirements, report_progress: Callable[[str], None]
    ) -> Problem | None:
        """The problem, or None if all packages can be imported."""
        try:
            image = await asyncio.to_thread(ImagePackages)
            folder = self._folder / f"{requirements.digest[:32]}-{image.fingerprint[:16]}"
            if (folder / _DONE).is_file():
                logger.info("Packages of %s: already installed", requirements.field)
            else:
                await self._install(requirements, image, folder, report_progress)
        except PackagesError as error:
            return requirements.violation(error.fault, error.fix)
        except OSError as error:
            fault = f"cannot be installed in {self._folder} ({error.strerror})"
            return requirements.violation(fault, "Set XDG_CACHE_HOME to a folder on a writable volume.")
        for path in _import_paths(folder):
            site.addsitedir(path)  # at the end of the path, after the packages of the image
        importlib.invalidate_caches()
        return None

    async def _install(
        self,
        requirements: Requirements,
        image: ImagePackages,
        folder: Path,
        report_progress: Callable[[str], None],
    ) -> None:
        """Create ``folder`` with all packages, or not at all. Raises PackagesError or OSError."""
        started = time.monotonic()
        new = Path(await asyncio.to_thread(_new_folder, self._folder))
        try:
            described, installed = new / "image", new / "packages"
            await asyncio.to_thread(image.write_metadata, described)
            options = ["--prefix", str(installed), "--constraint", str(described / CONSTRAINTS)]
            async with asyncio.timeout(self._seconds):
                await self._install_by_pip(requirements, options, described, report_progress)
            await asyncio.to_thread(_keep, installed, folder)
        except TimeoutError as error:
            raise PackagesError(
                f"was not installed within {self._seconds:.0f} s",
                f"Check that the package index answers, or add wheels to {WHEELS_FOLDER}/.",
            ) from error
        finally:
            await asyncio.to_thread(shutil.rmtree, new, ignore_errors=True)
        logger.info("Packages of %s: installed in %.1f s", requirements.field, time.monotonic() - started)

    async def _install_by_pip(
        self,
        requirements: Requirements,
        options: Sequence[str],
        described: Path,
        report_progress: Callable[[str], None],
    ) -> None:
        """From the wheels next to the file without an index, then, if that fails, with the index."""
        environ = {name: value for name, value in self._environ.items() if name not in _CONFLICTING_VARIABLES}
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(described), environ.get("PYTHONPATH", "")]))
        links = () if requirements.wheels is None else (f"--find-links={requirements.wheels}",)
        for more in ((*links, "--no-index"), links) if links else (links,):
            command = [*_OPTIONS, *options, *requirements.arguments, *more]
            code, lines = await run_pip(command, environ, requirements.folder, report_progress)
            if code == 0:
                return
        for line in lines[-_LOGGED_LINES:]:
            logger.error("pip: %s", redact(line))
        message, fix = summarize_failure("\n".join(lines))
        raise PackagesError(f"cannot be installed: {message}", fix)


async def run_pip(
    arguments: Sequence[str], environ: Mapping[str, str], folder: Path, report_progress: Callable[[str], None]
) -> tuple[int, list[str]]:
    """Run ``pip install`` in its own process group. Returns its exit status and its output.

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
        fault = f"cannot be installed, because pip cannot start in {folder} ({error.strerror})"
        fix = "Allow the pod's user to read that folder and to run Python."
        raise PackagesError(fault, fix) from error
    lines: deque[str] = deque(maxlen=_LINES)
    PROCESS_GROUPS.add(process.pid)
    try:
        assert process.stdout is not None
        async for line in _lines_of(process.stdout):
            lines.append(line)
            if line.startswith(("Collecting ", "Installing collected", "  Downloading ", "Processing ")):
                report_progress(f"packages: {redact(line.strip())[:200]}")
        return await process.wait(), list(lines)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        PROCESS_GROUPS.discard(process.pid)


async def _lines_of(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Skips lines that are longer than the stream's limit."""
    while True:
        try:
            raw = await stream.readline()
        except ValueError:
            continue
        if not raw:
            return
        yield raw.decode(errors="replace").rstrip()


def _new_folder(folder: Path) -> str:
    """A folder for a new installation. Removes the folders that killed containers left."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in folder.glob(f"*{_NEW}"):
        if time.time() - each.stat().st_mtime > 2 * INSTALL_SECONDS:
            shutil.rmtree(each, ignore_errors=True)
    return tempfile.mkdtemp(suffix=_NEW, dir=folder)


def _keep(installed: Path, folder: Path) -> None:
    installed.mkdir(exist_ok=True)  # pip creates no folder if no package is missing
    (installed / _DONE).touch()
    try:
        installed.rename(folder)
    except OSError:
        if not (folder / _DONE).is_file():  # unless another worker installed the same packages meanwhile
            raise


def _import_paths(folder: Path) -> list[str]:
    """The folders of packages below ``--prefix`` of pip."""
    scheme = sysconfig.get_preferred_scheme("prefix")
    base = {"base": str(folder), "platbase": str(folder)}
    paths = [sysconfig.get_path(name, scheme, base) for name in ("purelib", "platlib")]
    return [path for path in dict.fromkeys(paths) if Path(path).is_dir()]
