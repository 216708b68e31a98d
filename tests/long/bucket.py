"""A bucket in an S3 store that pods reach."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.object_store import SECRET_KEY, client, object_store

__all__ = ["SECRET_KEY", "bucket"]


@contextmanager
def bucket(address: str, folder: Path, name: str, objects: dict[str, str]) -> Iterator[dict[str, str]]:
    """Create a bucket with these objects (key -> text). Yields the environment variables of a client."""
    with object_store(folder, address) as environ:
        with closing(client(environ)) as store:
            store.create_bucket(Bucket=name)
            for key, text in objects.items():
                store.put_object(Bucket=name, Key=key, Body=text.encode())
        yield environ
