"""The project's cache outside the checkout, as ``hack/`` fills it: programs, models and the local cluster."""

import os
from pathlib import Path
from typing import Final

__all__ = ["BIN", "CACHE"]

_USER: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
CACHE: Final = Path(os.environ.get("VLLMENDPOINT_CACHE") or _USER / "vllmendpoint")
BIN: Final = CACHE / "bin"
