"""The three distributions build, and each installs without the workspace and declares what it imports."""

import json
import os
import re
import subprocess
import sys
import tomllib
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

from tests.project_cache import BIN

ROOT = Path(__file__).parents[2]
FOLDERS = {"api": "crds", "operator": "operator", "worker": "worker"}
ENGINE = ("dynamo", "vllm")
"""The packages of the worker's extra ``cpu`` that modules may require. NVIDIA's image has them."""


def uv(*arguments: str | Path, cwd: Path, timeout: float = 120) -> str:
    # The test process runs in an environment of the workspace, which uv must not use.
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    done = subprocess.run(
        [BIN / "uv", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Wheel by distribution, built through the source archive, as for a package index."""
    folder = tmp_path_factory.mktemp("wheels")
    for part in FOLDERS:
        uv("build", "--quiet", "--package", f"vllmendpoint-{part}", "--out-dir", folder, cwd=ROOT)
    return {part: next(folder.glob(f"vllmendpoint_{part}-*.whl")) for part in FOLDERS}


def metadata(wheel: Path) -> Message:
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


@pytest.mark.parametrize("part", FOLDERS)
def test_a_wheel_has_a_readme_an_author_and_the_licence(wheels: dict[str, Path], part: str) -> None:
    found = metadata(wheels[part])
    assert found["Author"] == "The VLLMEndpoint authors"
    assert found["License-Expression"] == "Apache-2.0"
    assert str(found.get_payload()).startswith(f"# vllmendpoint-{part}\n")
    with ZipFile(wheels[part]) as archive:
        (licence,) = (name for name in archive.namelist() if name.endswith("/licenses/LICENSE"))
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()


IMPORT_ALL = """
import importlib, sys

engine, names, count = sys.argv[1].split(","), sys.argv[2:], 0
for name in names:
    try:
        importlib.import_module(name)
        count += 1
    except ModuleNotFoundError as error:
        if error.name.split(".")[0] not in engine:
            raise
print(count)
"""


def modules(wheel: Path) -> list[str]:
    with ZipFile(wheel) as archive:
        files = [Path(name) for name in archive.namelist() if name.endswith(".py")]
    found = (file.parent if file.stem == "__init__" else file.with_suffix("") for file in files)
    return sorted(".".join(file.parts) for file in found if file.stem != "__main__")


@pytest.mark.parametrize(("part", "at_least"), [("api", 20), ("operator", 100), ("worker", 60)], ids=str)
def test_a_wheel_installs_alone_and_its_modules_import(
    wheels: dict[str, Path], tmp_path: Path, part: str, at_least: int
) -> None:
    needed = {wheels["api"], wheels[part]}
    uv("venv", "--quiet", "--no-project", "--python", sys.executable, "venv", cwd=tmp_path)
    uv("pip", "install", "--quiet", "--no-config", "--python", "venv", *needed, cwd=tmp_path)
    done = subprocess.run(
        ["venv/bin/python", "-I", "-c", IMPORT_ALL, ",".join(ENGINE), *modules(wheels[part])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= at_least
    installed = {
        each["name"]
        for each in json.loads(uv("pip", "list", "--python", "venv", "--format", "json", cwd=tmp_path))
    }
    assert not installed & {"torch", "vllm", "ai-dynamo"}


def test_an_import_that_is_not_declared_is_found(tmp_path: Path) -> None:
    project = (ROOT / "worker/pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(project.replace('    "httpx>=0.28",\n', ""))
    (tmp_path / "src/vllmendpoint_worker").mkdir(parents=True)
    (tmp_path / "src/vllmendpoint_worker/__init__.py").write_text("import httpx\n")
    done = subprocess.run(
        [ROOT / ".venv/bin/deptry", "src", "--no-ansi"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert re.search(r"DEP003 'httpx' imported but it is a transitive dependency", done.stdout + done.stderr)


def test_all_parts_have_the_same_version() -> None:
    projects = {
        folder: tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
        for folder in FOLDERS.values()
    }
    chart = yaml.safe_load((ROOT / "charts/vllmendpoint-operator/Chart.yaml").read_text())
    root = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {project["version"] for project in projects.values()} == {root}
    assert (chart["version"], chart["appVersion"]) == (root, root)
    for folder in ("operator", "worker"):
        assert f"vllmendpoint-api=={root}" in projects[folder]["dependencies"]


IMPORTED = """
import importlib.metadata, json, sys
before = set(sys.modules)
import vllmendpoint_worker.frontend._dynamo, vllmendpoint_worker.frontend.entry
names = {name.partition(".")[0] for name in set(sys.modules) - before}
found = importlib.metadata.packages_distributions()
print(json.dumps(sorted({distribution for name in names for distribution in found.get(name, ())})))
"""


def test_the_image_of_frontends_has_every_package_that_they_import() -> None:
    """buildah does not repeat the check at the image's build if only our code has changed."""
    (options,) = re.findall(
        r"--package vllmendpoint-worker --only-group frontend ([^/]*) -o /frontend/",
        (ROOT / "Dockerfile").read_text(),
    )
    arguments = [*options.replace("\\", " ").split(), "--no-hashes", "--no-header", "--no-annotate"]
    command = [
        "export",
        "--quiet",
        "--frozen",
        "--package",
        "vllmendpoint-worker",
        "--only-group",
        "frontend",
    ]
    exported = uv(*command, *arguments, cwd=ROOT)
    installed = {line.partition("==")[0].lower() for line in exported.splitlines()}
    assert "ai-dynamo" in installed
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)
    imported = {name.lower().replace("_", "-") for name in json.loads(done.stdout)}
    ours = {"vllmendpoint-api", "vllmendpoint-worker", "setuptools"}
    assert "pydantic" in imported
    assert imported - ours <= installed
