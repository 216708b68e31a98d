"""Packages of a script, installed with the real pip, offline, from wheels that the tests write."""

import asyncio
import importlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.tiny_wheel import write_wheel
from vllmendpoint_api import ConfigurationState, Problem, Reason
from vllmendpoint_worker.packages import install as packages
from vllmendpoint_worker.packages.install import Packages, packages_folder

from .conftest import WorkerProcess, wait, wait_until_gone

pytestmark = pytest.mark.timeout(300)
UNREACHABLE_INDEX = "http://127.0.0.1:9/simple"


class Rejected(Exception):
    """Raised for the first problem, which ends the retries of the installation."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem


class Pod:
    """The model's folder and the volume below XDG_CACHE_HOME; no package index can be reached."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.model = folder / "model"
        self.model.mkdir(parents=True)
        self.wheels = self.model / "requirements"
        self.progress: list[str] = []
        self.path = list(sys.path)
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder / "home"),
            "SAGEMAKER_MODEL_PATH": str(self.model),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "PIP_INDEX_URL": UNREACHABLE_INDEX,
            "PIP_RETRIES": "1",
        } | environ

    def write_requirements(self, *lines: str) -> None:
        (self.model / "requirements.txt").write_text("\n".join(lines) + "\n")

    async def start(self, seconds: float = 60.0) -> None:
        def reject(problem: Problem) -> None:
            raise Rejected(problem)

        sys.path[:] = self.path  # as in a new process
        await Packages(self.environ, seconds).wait_until_installed(reject, self.progress.append)

    async def start_rejected(self, seconds: float = 60.0) -> Problem:
        """The problem with which the installation fails."""
        with pytest.raises(Rejected) as caught:
            await self.start(seconds)
        return caught.value.problem

    @property
    def installed(self) -> list[str]:
        """Names of the packages and modules in the volume."""
        found = packages_folder(self.environ).glob("*/lib/python*/site-packages/*")
        return sorted(each.name for each in found if each.name != "__pycache__")


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    path, modules = list(sys.path), set(sys.modules)
    yield Pod(tmp_path / "pod")
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("tiny"):
            del sys.modules[name]
    importlib.invalidate_caches()


def version_of(name: str) -> str:
    sys.modules.pop(name, None)
    return str(importlib.import_module(name).version)


async def test_wheels_beside_the_script_are_installed_without_an_index(pod: Pod) -> None:
    write_wheel(pod.wheels, "tinytool", requires=["tinybase>=2", "pydantic", "torch"])
    write_wheel(pod.wheels, "tinybase", "2.5")
    pod.write_requirements("# tools of the script", "tinytool[none]==1.0  # pinned")
    before = sorted(pod.model.rglob("*"))
    await pod.start()
    assert (version_of("tinytool"), version_of("tinybase")) == ("1.0", "2.5")
    assert pod.installed == ["tinybase-2.5.dist-info", "tinybase.py", "tinytool-1.0.dist-info", "tinytool.py"]
    assert sorted(pod.model.rglob("*")) == before, "the model's folder may be read-only"
    assert any(line.startswith("packages: Processing ") for line in pod.progress)


async def test_a_very_long_line_of_pip_does_not_fail_the_installation(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "_LINE_BYTES", 16)
    write_wheel(pod.wheels, "tinylong")
    pod.write_requirements("tinylong")
    await pod.start()
    assert version_of("tinylong") == "1.0"


async def test_missing_dependencies_of_the_images_packages_are_not_installed(
    pod: Pod, tmp_path: Path
) -> None:
    """For example triton, which torch requires and a CPU image lacks."""
    image = tmp_path / "image"
    info = image / "tinytorch-3.1.dist-info"
    info.mkdir(parents=True)
    metadata = ["Metadata-Version: 2.1", "Name: tinytorch", "Version: 3.1", "Provides-Extra: more"]
    metadata += ["Requires-Dist: tinytriton==9", "Requires-Dist: tinymore ; extra == 'more'"]
    (info / "METADATA").write_text("\n".join(metadata) + "\n")
    (image / "tinytorch.py").write_text("version = 'the image'\n")
    pod.path.insert(0, str(image))
    write_wheel(pod.wheels, "tinytool", requires=["tinytorch[more]>=3"])
    write_wheel(pod.wheels, "tinymore")
    write_wheel(pod.wheels, "tinytorch", "3.2")
    pod.write_requirements("tinytool", "tinytorch")
    await pod.start()
    assert pod.installed == ["tinymore-1.0.dist-info", "tinymore.py", "tinytool-1.0.dist-info", "tinytool.py"]
    assert version_of("tinytorch") == "the image"


async def test_a_restart_of_the_container_installs_nothing_again(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(pod.wheels, "tinytool")
    pod.write_requirements("-r more.txt")
    (pod.model / "more.txt").write_text("tinytool\n")
    await pod.start()
    runs: list[object] = []
    pip = packages.run_pip

    async def counted(*arguments: object) -> tuple[int, list[str]]:
        runs.append(arguments)
        return await pip(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(packages, "run_pip", counted)
    await pod.start()
    assert (runs, version_of("tinytool")) == ([], "1.0")
    write_wheel(pod.wheels, "tinytool", "1.1")
    await pod.start()
    assert len(runs) == 1, "another wheel"
    (pod.model / "more.txt").write_text("tinytool==1.1\n")
    await pod.start()
    assert len(runs) == 2, "another line in a file that is included"


async def test_a_package_of_the_image_is_not_replaced(pod: Pod) -> None:
    write_wheel(pod.wheels, "pydantic", "1.0")
    pod.write_requirements("pydantic==1.0")
    problem = await pod.start_rejected()
    assert (problem.reason, problem.source, problem.field) == (
        Reason.REQUIREMENTS_NOT_INSTALLED, "Script", "requirements.txt",
    )  # fmt: skip
    assert "The user requested pydantic==1.0" in problem.message
    assert f"The image contains pydantic {version('pydantic')}, which the engine needs" in problem.message
    assert pod.installed == []


async def test_a_missing_package_is_named_and_the_installation_retried(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "pause", lambda failures: 0.05)
    write_wheel(pod.wheels, "tinytool")
    pod.write_requirements("tinytool", "tinymissing>=2")
    problems: list[Problem] = []

    def reject(problem: Problem) -> None:
        problems.append(problem)
        write_wheel(pod.wheels, "tinymissing", "2.0")

    await Packages(pod.environ).wait_until_installed(reject, pod.progress.append)
    (problem,) = problems
    assert (
        "No matching distribution found for tinymissing>=2; the package index cannot be reached"
        in problem.message
    )
    assert "Connection refused" in problem.message
    assert "Correct the code" not in problem.message
    assert version_of("tinymissing") == "2.0"


async def test_explicit_arguments_replace_the_requirements_file(pod: Pod) -> None:
    write_wheel(pod.model / "other", "tinytool", "1.0")
    write_wheel(pod.model / "other", "tinytool", "2.0")
    pod.write_requirements("tinymissing")
    pod.environ["STANDARD_PIP_ARGS"] = "--no-index --find-links other 'tinytool<2'"
    await pod.start()
    assert version_of("tinytool") == "1.0"


@pytest.mark.parametrize("off", ["false", "False", "0", "no", "off"])
async def test_one_variable_turns_the_installation_off(pod: Pod, off: str) -> None:
    pod.write_requirements("tinymissing")
    pod.environ |= {"STANDARD_AUTO_INSTALL_REQ": off, "STANDARD_PIP_ARGS": "tinymissing"}
    await pod.start()
    assert not packages_folder(pod.environ).exists()


async def test_without_requirements_no_folder_is_created(pod: Pod) -> None:
    await pod.start()
    assert not packages_folder(pod.environ).exists()


async def test_an_unresponsive_index_fails_within_the_timeout(pod: Pod) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        pod.environ["PIP_INDEX_URL"] = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        pod.write_requirements("tinymissing")
        began = asyncio.get_running_loop().time()
        problem = await pod.start_rejected(seconds=4.0)
        # pip's own timeout is 15 s per attempt.
        assert asyncio.get_running_loop().time() - began < 14
    assert "requirements.txt was not installed within 4 s" in problem.message
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    lines = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children]
    assert not [line for line in lines if b"pip" in line]
    assert list(packages_folder(pod.environ).iterdir()) == []


async def test_an_unwritable_folder_is_named_with_its_variable(pod: Pod) -> None:
    write_wheel(pod.wheels, "tinytool")
    pod.write_requirements("tinytool")
    pod.environ["XDG_CACHE_HOME"] = str(pod.model / "requirements.txt")
    problem = await pod.start_rejected()
    assert "Not a directory" in problem.message
    assert "Set XDG_CACHE_HOME to a folder on a writable volume" in problem.message


async def test_credentials_of_an_index_are_redacted(pod: Pod, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    pod.environ |= {
        "STANDARD_PIP_ARGS": "--index-url http://me:hunter2@127.0.0.1:9/t0ken/simple "
        "--extra-index-url http://hunter3@127.0.0.1:9/simple?key=s3cret tinymissing",
    }
    problem = await pod.start_rejected()
    assert (problem.source, problem.field) == ("Environment", "STANDARD_PIP_ARGS")
    assert "tinymissing" in problem.message
    output = problem.message + caplog.text + "".join(pod.progress)
    for secret in ("hunter2", "t0ken", "hunter3", "s3cret"):
        assert secret not in output


@pytest.mark.parametrize(
    ("requirement", "message"),
    [
        ("tiny=1", "Invalid requirement: 'tiny=1'"),
        ("tinyother", "No matching distribution found for tinyother"),
        ("./requirements/tinybroken-1.0-py3-none-any.whl", "tinybroken"),
        ("-r none.txt", "none.txt"),
        ("tinyhashed==1.0 --hash=sha256:" + 64 * "0", "DO NOT MATCH THE HASHES"),
    ],
)
async def test_the_problem_quotes_the_error_of_pip(pod: Pod, requirement: str, message: str) -> None:
    write_wheel(pod.wheels, "tinyother", tag="cp36-cp36m-win32")
    write_wheel(pod.wheels, "tinyhashed")
    (pod.wheels / "tinybroken-1.0-py3-none-any.whl").write_bytes(b"no archive")
    pod.write_requirements(requirement)
    problem = await pod.start_rejected()
    assert message in problem.message
    assert problem.message.startswith("requirements.txt cannot be installed: ")
    assert problem.message.endswith(".")


async def test_a_package_with_a_matching_pinned_hash_is_installed(pod: Pod) -> None:
    from hashlib import sha256

    wheel = write_wheel(pod.wheels, "tinyhashed", requires=["pydantic"])
    pod.write_requirements(f"tinyhashed==1.0 --hash=sha256:{sha256(wheel.read_bytes()).hexdigest()}")
    await pod.start()
    assert version_of("tinyhashed") == "1.0"


def test_pip_ends_with_the_worker(make_worker: Callable[..., WorkerProcess], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        cache = str(tmp_path / "cache")
        environ = {"STANDARD_PIP_ARGS": "tinymissing", "PIP_INDEX_URL": index, "XDG_CACHE_HOME": cache}
        worker = make_worker(environ)
        worker.settings({})
        worker.start()
        silent.settimeout(60)
        silent.accept()[0].close()  # the request of pip
        children = worker.children()
        assert children
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.exit_code(10) == 0
        wait_until_gone(children, 5.0)


def test_packages_are_installed_before_the_script_is_imported_and_not_again_after_a_restart(
    make_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "requirements.txt").write_text("tinytool\n")
    (model / "model.py").write_text(
        "import tinytool\n\ndef custom_sagemaker_ping_handler():\n    return {'tool': tinytool.version}\n"
    )
    worker = make_worker(
        {
            "SAGEMAKER_MODEL_PATH": str(model),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "PIP_INDEX_URL": UNREACHABLE_INDEX,
            "PIP_RETRIES": "0",
        }
    )
    worker.settings({})
    worker.start()
    worker.until(lambda report: report.configuration.state == ConfigurationState.REJECTED, 60)
    (problem,) = worker.report().configuration.problems
    assert (problem.reason, "tinytool" in problem.message) == (Reason.REQUIREMENTS_NOT_INSTALLED, True)
    assert (worker.status("report", "/started"), worker.status("report", "/ready")) == (200, 503)
    write_wheel(model / "requirements", "tinytool")
    worker.until_ready()
    assert worker.report().configuration.state == ConfigurationState.RESOLVED
    assert worker.request("http", "/ping") == (200, b'{"tool":"1.0"}')
    worker.stop()
    worker.start()
    wait(lambda: "Packages of requirements.txt: already installed" in worker.log(), 60)
    assert worker.log().count("Packages of requirements.txt: installed in ") == 1
