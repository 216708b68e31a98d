"""Presents the packages of the image to pip as installed, complete and fixed.

The image omits some requirements of its packages (triton, torchvision), and pip would download them for every
package that requires torch. pip has no option for that; uv's overrides do it, but uv is a binary of 50 MB.
Therefore pip's path starts with metadata of the same names and versions without requirements. The
requirements of extras remain, so that ``package[extra]`` works.
"""

import platform
import re
import sys
from collections.abc import Iterator
from hashlib import sha256
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final

__all__ = ["CONSTRAINTS", "ImagePackages"]

CONSTRAINTS: Final = "constraints.txt"


class ImagePackages:
    """The installed packages. Reads all their metadata, which takes 0.3 s."""

    def __init__(self) -> None:
        self._packages: dict[str, Distribution] = {}
        for each in distributions():
            # Damaged metadata has no name. Python imports the first of two versions on the path.
            if name := each.metadata["Name"]:
                self._packages.setdefault(re.sub(r"[-_.]+", "-", name).lower(), each)

    @property
    def fingerprint(self) -> str:
        """Changes with the packages and the version of Python."""
        lines = [sys.version, platform.machine(), *self._pins()]
        return sha256("\n".join(lines).encode()).hexdigest()

    def write_metadata(self, folder: Path) -> None:
        """Write the metadata and the constraints into ``folder``."""
        for name, package in self._packages.items():
            path = folder / f"{name.replace('-', '_')}-{package.version}.dist-info"
            path.mkdir(parents=True)
            (path / "METADATA").write_text("\n".join(_metadata(package)) + "\n")
            (path / "INSTALLER").write_text("image\n")
        (folder / CONSTRAINTS).write_text("\n".join(self._pins()) + "\n")

    def _pins(self) -> list[str]:
        return sorted(f"{name}=={package.version}" for name, package in self._packages.items())


def _metadata(package: Distribution) -> Iterator[str]:
    yield "Metadata-Version: 2.1"
    yield f"Name: {package.metadata['Name']}"
    yield f"Version: {package.version}"
    for extra in package.metadata.get_all("Provides-Extra") or []:
        yield f"Provides-Extra: {extra}"
    for requirement in package.requires or []:
        if re.search(r";.*\bextra\b", requirement):
            yield f"Requires-Dist: {requirement}"
