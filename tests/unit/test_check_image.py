"""The checks of an image at its build (hack/check_image.py), and the versions in the Dockerfile."""

import importlib
import importlib.metadata
import importlib.util
import re
import shutil
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCK = tomllib.loads((ROOT / "uv.lock").read_text())


@pytest.fixture
def check_image():
    spec = importlib.util.spec_from_file_location("check_image", ROOT / "hack/check_image.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def in_an_image(monkeypatch, check_image):
    """The programs exist, and the slow imports are left out."""
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setitem(check_image.IMPORTS, "worker", ("vllmendpoint_worker.serving",))
    monkeypatch.setitem(check_image.ENTRY_POINTS, "vllm.stat_logger_plugins", "vllmendpoint_progress")
    monkeypatch.setattr(check_image, "entry_point_problems", lambda: iter(()))


def test_the_environment_of_the_workspace_meets_the_checks_of_a_worker(check_image):
    assert list(check_image.problems("worker", LOCK)) == []


@pytest.mark.parametrize("name", ["ai-dynamo", "ai-dynamo-runtime", "vllm"])
@pytest.mark.parametrize("found", ["9.9.9", None])
def test_another_version_than_that_of_the_lock_is_a_problem(check_image, monkeypatch, name, found):
    version = importlib.metadata.version

    def patched(asked):
        if asked != name:
            return version(asked)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(asked)
        return found

    monkeypatch.setattr(importlib.metadata, "version", patched)
    (locked,) = [package["version"] for package in LOCK["package"] if package["name"] == name]
    assert list(check_image.problems("worker", LOCK)) == [
        f"{name} is {found or 'not installed'}, and uv.lock has {locked.partition('+')[0]}"
    ]


def test_a_missing_program_is_a_problem(check_image, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "/usr/sbin/haproxy" else name)
    assert "the program /usr/sbin/haproxy does not exist" in list(check_image.problems("frontend", LOCK))


def test_an_engine_in_the_image_of_frontends_is_a_problem(check_image):
    assert list(check_image.problems("frontend", LOCK)) == [
        "torch is installed", "transformers is installed", "vllm is installed"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ModuleNotFoundError("No module named 're2'"), "ModuleNotFoundError: No module named 're2'"),
        (ImportError("libcuda.so.1: cannot open shared object file"), ""),
        (OSError("libnvidia-ml.so.1: cannot open shared object file"), ""),
        (ImportError("libcudart.so.13: cannot open shared object file"), "ImportError: libcudart.so.13: "),
        (RuntimeError("libcuda.so.1"), "RuntimeError: libcuda.so.1"),
    ],
)
def test_only_a_missing_driver_is_no_problem_of_an_import(check_image, monkeypatch, capsys, error, expected):
    def fail(name):
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    found = check_image.import_problem("re2")
    assert found.startswith(expected)
    assert bool(found) == bool(expected)
    assert ("was not checked" in capsys.readouterr().err) == (not expected)


def test_a_home_that_is_not_writable_is_a_problem(check_image, monkeypatch):
    monkeypatch.setenv("HOME", "/proc")
    assert check_image.home_problem().startswith("HOME=/proc is not writable")


@pytest.mark.parametrize(
    ("entry_point", "message"),
    [
        (None, "does not exist"),
        ("vllmendpoint_worker.gone:install", "cannot load the entry point vllmendpoint_stages"),
        ("vllmendpoint_worker.engine.stages:gone", "which does not exist"),
        ("vllmendpoint_worker.engine.stages:install", ""),
    ],
)
def test_an_entry_point_that_vllm_cannot_load_is_a_problem(check_image, monkeypatch, entry_point, message):
    monkeypatch.undo()
    monkeypatch.setattr(check_image, "ENTRY_POINTS", {"vllm.general_plugins": "vllmendpoint_stages"})

    def entry_points(group, name):
        return [] if entry_point is None else [importlib.metadata.EntryPoint(name, entry_point, group)]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    found = list(check_image.entry_point_problems())
    assert len(found) == bool(message)
    assert all(message in text for text in found)


def test_the_entry_points_are_those_of_the_worker(check_image):
    project = tomllib.loads((ROOT / "worker/pyproject.toml").read_text())["project"]
    declared = {group: list(names) for group, names in project["entry-points"].items()}
    assert {group: [name] for group, name in check_image.ENTRY_POINTS.items()} == declared


def test_the_base_of_the_gpu_image_is_the_locked_version_of_dynamo():
    (tag,) = re.findall(r"^ARG GPU_BASE=\S+:(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    (locked,) = [package["version"] for package in LOCK["package"] if package["name"] == "ai-dynamo"]
    assert tag == locked
