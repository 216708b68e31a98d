"""A fake of the client: objects by kind and name, with scripted errors, warnings and admission policies."""

from collections.abc import Callable
from typing import Any

from vllmendpoint_operator.errors import Conflict, NotFound
from vllmendpoint_operator.kube.kinds import ENDPOINT, Kind

Object = dict[str, Any]


class FakeKube:
    """Objects by (kind, name). ``rejections``, ``warnings`` and ``mutations`` script the responses."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        self.endpoint: Object | None = {"metadata": {"uid": "uid-1"}}
        self.writes: list[tuple[str, str, str]] = []
        self.rejections: dict[str, Exception] = {}
        self.warnings: dict[tuple[str, str], list[str]] = {}
        self.version = 10
        self.reads: list[tuple[str, str]] = []
        self.managers: list[str | None] = []
        self.mutations: dict[tuple[str, str], Callable[[Object], Object]] = {}
        """(kind, name) -> changes an object like a mutating admission policy."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        self.reads.append((kind.kind, name))
        if (kind.kind, name) not in self.objects:
            raise NotFound(404, "no")
        return self.objects[kind.kind, name]

    async def list(
        self, kind: Kind, namespace: str, *, name: str, metadata_only: bool
    ) -> tuple[list[Object], str]:
        assert kind is ENDPOINT
        self.reads.append((kind.kind, name))
        return [self.endpoint] if self.endpoint else [], "1"

    async def apply(
        self,
        kind: Kind,
        body: Object,
        *,
        dry_run: bool = False,
        on_warning: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Object:
        metadata = body["metadata"]
        if on_warning is not None:
            for text in self.warnings.get((kind.kind, metadata["name"]), ()):
                on_warning(text)
        existing = self.objects.get((kind.kind, metadata["name"]))
        if existing and metadata.get("resourceVersion") not in (
            None,
            existing["metadata"].get("resourceVersion"),
        ):
            raise Conflict(409, "the object has been modified")
        self.writes.append(("verify" if dry_run else "apply", kind.kind, metadata["name"]))
        if kind.kind in self.rejections and not options.get("manager", "").endswith("-scale"):
            raise self.rejections[kind.kind]
        if dry_run:
            return body
        old = self.objects.get((kind.kind, metadata["name"]), {"metadata": {"uid": f"u{len(self.objects)}"}})
        if metadata.get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]:
            raise Conflict(409, "another object")
        self.managers.append(options.get("manager"))
        self.version += 1
        if (mutate := self.mutations.get((kind.kind, metadata["name"]))) is not None:
            body = mutate(body)
        if options.get("manager", "").endswith("-scale"):
            body = {**old, "spec": {**old["spec"], **body["spec"]}}
            metadata = {**old["metadata"], **metadata}
        new = {
            **body,
            "metadata": {**metadata, "uid": old["metadata"]["uid"], "resourceVersion": str(self.version)},
        }
        self.objects[kind.kind, metadata["name"]] = new
        return new

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str) -> None:
        self.writes.append(("delete", kind.kind, name))
        if self.objects.pop((kind.kind, name), None) is None:
            raise NotFound(404, "no")
