"""Scripts of the repository, run with programs that a test provides."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def bash(
    script: str, path: Path | None = None, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script; programs in the folder ``path`` take precedence."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("DOCKER_HOST", "CLUSTER")}
    search = f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]
    return subprocess.run(
        ["bash", "-euc", script],
        cwd=cwd,
        env={**inherited, "PATH": search, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def program(folder: Path, name: str, body: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)
