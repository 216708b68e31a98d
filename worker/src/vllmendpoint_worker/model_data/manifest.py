"""Records which objects of S3 the files of a folder were downloaded from."""

from pathlib import Path

from pydantic import BaseModel, ValidationError

__all__ = ["Manifest"]


class Manifest(BaseModel):
    """Stored next to the files. An unreadable manifest counts as empty."""

    objects: dict[str, tuple[str, int]] = {}
    """Path -> ETag and size of its object."""
    files: dict[str, int] = {}
    """Path -> size of the file in bytes."""

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Raises OSError if the file exists but cannot be read."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return cls()

    def write(self, path: Path) -> None:
        """Replace the file atomically."""
        temporary = path.with_suffix(".new")
        temporary.write_text(self.model_dump_json())
        temporary.replace(path)

    def is_in_place(self, folder: Path, path: str) -> bool:
        """Whether the file exists with the size that was downloaded."""
        try:
            return (folder / path).lstat().st_size == self.files.get(path)
        except OSError:
            return False
