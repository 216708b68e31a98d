"""Checks, while an image is built, what the project's programs rely on: check_image.py worker|frontend LOCK

The Dockerfile runs it with the Python of the image, for the GPU image as well, whose base is NVIDIA's. It prints
every problem and exits with 1 if there is one.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

LOCKED: Final = {
    "worker": ("ai-dynamo", "ai-dynamo-runtime", "vllm"),
    "frontend": ("ai-dynamo", "ai-dynamo-runtime"),
}
"""Distributions whose versions must be those of uv.lock."""
IMPORTS: Final = {
    "worker": ("boto3", "nixl._api", "re2", "vllmendpoint_worker.start", "vllmendpoint_worker.upstream"),
    "frontend": (),
}
PROGRAMS: Final = {"worker": ("tini", "python3"), "frontend": ("tini", "python3", "/usr/sbin/haproxy")}
ENTRY_POINTS: Final = {
    "vllm.general_plugins": "vllmendpoint_stages",
    "vllm.stat_logger_plugins": "vllmendpoint_progress",
}
"""By these, vLLM loads the worker's code into its processes."""
ABSENT: Final = ("torch", "transformers", "vllm")
"""Modules that a frontend's image must not contain."""
DRIVER: Final = ("libcuda.so", "libnvidia-")
"""Libraries of the driver, which the nodes provide. A machine that builds an image may have none."""


def problems(part: str, lock: dict[str, Any]) -> Iterator[str]:
    locked = {package["name"]: package["version"] for package in lock["package"]}
    for name in LOCKED[part]:
        expected = locked[name].partition("+")[0]
        try:
            found = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found = "not installed"
        if found != expected:
            yield f"{name} is {found}, and uv.lock has {expected}"
    for program in PROGRAMS[part]:
        if shutil.which(program) is None:
            yield f"the program {program} does not exist"
    for module in (
        *IMPORTS[part],
        "vllmendpoint_worker.frontend.entry",
        "vllmendpoint_worker.frontend._dynamo",
    ):
        if message := import_problem(module):
            yield f"cannot import {module}: {message}"
    if part == "worker":
        yield from entry_point_problems()
    else:
        yield from (f"{name} is installed" for name in ABSENT if importlib.util.find_spec(name))
    if message := home_problem():
        yield message


def import_problem(module: str) -> str:
    """Why the module cannot be imported; empty if it can, or if only the driver is missing."""
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001  (a module may raise anything)
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, (ImportError, OSError)) and any(name in text for name in DRIVER):
            print(
                f"{module} was not checked, because this machine has no NVIDIA driver: {text}",
                file=sys.stderr,
            )
            return ""
        return text
    return ""


def entry_point_problems() -> Iterator[str]:
    for group, name in ENTRY_POINTS.items():
        found = importlib.metadata.entry_points(group=group, name=name)
        if not found:
            yield f"the entry point {name} of {group} does not exist"
        for entry_point in found:
            module = entry_point.value.partition(":")[0]
            if message := import_problem(module):
                yield f"cannot load the entry point {name} of {group}: {message}"
            elif module in sys.modules and not hasattr(sys.modules[module], entry_point.attr):
                yield f"the entry point {name} of {group} names {entry_point.value}, which does not exist"


def home_problem() -> str:
    """A container may run as any user of the group 0, as on OpenShift."""
    home = os.environ.get("HOME", "/")
    try:
        with tempfile.TemporaryFile(dir=home):
            return ""
    except OSError as error:
        return f"HOME={home} is not writable: {error}"


def main(part: str, lock: str) -> int:
    found = list(problems(part, tomllib.loads(Path(lock).read_text())))
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    if not found:
        print(f"{part}: versions, imports, programs and entry points are as expected")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
