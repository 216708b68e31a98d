"""Sends requests to the API server: plain objects, server-side apply, lists and watches as streams.

Configuration, authentication, TLS, proxies and the HTTP session come from ``kubernetes.aio``. Requests use
its REST client, and not its typed API. The typed API takes 1.4 ms of CPU per server-side apply of a
Deployment instead of 0.5 ms, and 35 MB more memory (measured, 1,500 requests). It also decodes a list as a
whole, and encodes an apply as JSON that is not YAML for all characters.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any, Final, Self
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client.rest import RESTClientObject
from msgspec import Raw, json

from vllmendpoint_operator.errors import Rejected, WatchListUnsupported

from .configuration import Configuration, authorization
from .kinds import Kind
from .lists import RawObject, split_list
from .responses import error_of, transport_errors, warning_text, watch_events
from .tls_buffers import limit_tls_buffers

__all__ = ["FIELD_MANAGER", "Kube", "Object"]

Object = dict[str, Any]
FIELD_MANAGER: Final = "vllmendpoint-operator"

_CONNECT_SECONDS: Final = 10
_REQUEST_SECONDS: Final = 30.0
_WATCH_SECONDS: Final = 300
"""After this time the API server ends a watch."""
_WATCH_READ_SECONDS: Final = 130
"""The API server sends a bookmark every minute: a watch that misses two is dead, even if TCP reports no
error."""
_TIMEOUT: Final = aiohttp.ClientTimeout(total=_REQUEST_SECONDS, connect=_CONNECT_SECONDS)
_LIST_TIMEOUT: Final = aiohttp.ClientTimeout(
    total=_WATCH_SECONDS, connect=_CONNECT_SECONDS, sock_read=_REQUEST_SECONDS
)
_WATCH_TIMEOUT: Final = aiohttp.ClientTimeout(
    total=None, connect=_CONNECT_SECONDS, sock_read=_WATCH_READ_SECONDS
)
_METADATA: Final = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=v1"
_APPLY: Final = "application/apply-patch+yaml;charset=utf-8"
"""With the charset, ``kubernetes.aio`` sends the body as it is; the API server ignores it."""
_NOT_YAML: Final = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


class Kube:
    """A pool of connections to one API server.

    Args:
        fence: called before every write. Returns the seconds that the write may take, and raises if no write
        is
            allowed, because the lease expired.
        on_request: called once per request with the verb, the plural of the kind and the HTTP status; 0 if no
            response arrived.
    """

    def __init__(
        self,
        configuration: Configuration,
        *,
        fence: Callable[[], float] = lambda: _REQUEST_SECONDS,
        on_request: Callable[[str, str, int], None] = lambda verb, plural, status: None,
    ) -> None:
        self._configuration = configuration
        self._rest: RESTClientObject | None = None
        self.fence = fence
        self._on_request = on_request

    async def __aenter__(self) -> Self:
        limit_tls_buffers()
        # On a thread: it reads certificates from files.
        self._rest = await asyncio.to_thread(RESTClientObject, self._configuration)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._rest is not None
        await self._rest.close()

    @contextlib.asynccontextmanager
    async def _request(
        self,
        verb: str,
        kind: Kind,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Object | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        client_timeout: aiohttp.ClientTimeout = _TIMEOUT,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the response to a request, whose body is not yet read. Raises KubeError."""
        assert self._rest is not None, "use `async with Kube(...)`"
        url = f"{self._configuration.host}{path}"
        # Decompressing a list costs the API server and the operator more CPU than its transfer.
        all_headers = {"Accept": "application/json", "Accept-Encoding": "identity", **(headers or {})}
        if value := await authorization(self._configuration):
            all_headers["Authorization"] = value
        with transport_errors(method, path):
            try:
                sent = await self._rest.request(
                    method,
                    f"{url}?{urlencode(params)}" if params else url,
                    headers=all_headers,
                    body=body,
                    _request_timeout=client_timeout,
                )
            except (aiohttp.ClientError, TimeoutError):
                self._on_request(verb, kind.plural, 0)
                raise
        response: aiohttp.ClientResponse = sent.response
        async with response:
            self._on_request(verb, kind.plural, response.status)
            if response.status >= 400:
                with transport_errors(method, path):
                    raise await error_of(response)
            yield response

    async def _json(
        self,
        verb: str,
        kind: Kind,
        method: str,
        path: str,
        *,
        on_warning: Callable[[str], None] | None = None,
        **kwargs: Any,
    ) -> Object:
        async with self._request(verb, kind, method, path, **kwargs) as response:
            with transport_errors(method, path):
                result: Object = json.decode(await response.read())
            if on_warning is not None:
                for header in response.headers.getall("Warning", ()):
                    on_warning(warning_text(header))
            return result

    # Reads

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        return await self._json("get", kind, "GET", kind.path(namespace, name))

    @contextlib.asynccontextmanager
    async def list_stream(
        self,
        kind: Kind,
        namespace: str | None,
        *,
        selector: str = "",
        name: str = "",
        metadata_only: bool = False,
        limit: int = 0,
    ) -> AsyncIterator[tuple[str, AsyncIterator[RawObject]]]:
        """Yield the resourceVersion to watch from, and an iterator over the objects as they arrive.

        The list is one response. The same objects in pages, or from a watch, cost the API server twice the
        CPU.

        Args:
            namespace: None for all namespaces.
            selector: label selector.
            name: only the object of this name.
            metadata_only: request ``PartialObjectMetadata``.
            limit: maximum number of objects; 0 for all.
        """
        path = kind.path(namespace)
        params = {"limit": str(limit)} if limit else {}
        if name:
            params["fieldSelector"] = f"metadata.name={name}"
        if selector:
            params["labelSelector"] = selector
        headers = {"Accept": _METADATA.format("List")} if metadata_only else None
        # The items of a list have no apiVersion and kind. Comparisons need them.
        type_meta = {"apiVersion": Raw(json.encode(kind.api_version)), "kind": Raw(json.encode(kind.kind))}

        async def objects(items: AsyncIterator[RawObject]) -> AsyncIterator[RawObject]:
            with transport_errors("GET", path):
                async for item in items:
                    yield {**type_meta, **item}

        async with self._request(
            "list", kind, "GET", path, params=params, headers=headers, client_timeout=_LIST_TIMEOUT
        ) as response:
            with transport_errors("GET", path):
                version, items = await split_list(response.content.iter_any())
            yield version, objects(items)

    async def list(
        self,
        kind: Kind,
        namespace: str | None,
        *,
        selector: str = "",
        name: str = "",
        metadata_only: bool = False,
    ) -> tuple[list[Object], str]:
        """Return the objects, and the resourceVersion to watch from. Arguments: see :meth:`list_stream`."""
        async with self.list_stream(
            kind, namespace, selector=selector, name=name, metadata_only=metadata_only
        ) as (version, items):
            return [json.decode(json.encode(item)) async for item in items], version

    async def watch(
        self,
        kind: Kind,
        namespace: str | None,
        resource_version: str | None,
        *,
        selector: str = "",
        metadata_only: bool = False,
    ) -> AsyncGenerator[tuple[str, RawObject], None]:
        """Iterate over (ADDED | MODIFIED | DELETED | BOOKMARK, object) until the API server ends the watch.

        Without a ``resource_version``, all existing objects come first as ADDED, then a BOOKMARK.

        Raises WatchListUnsupported if the API server cannot do that (by default before Kubernetes 1.34), and
        Gone if the ``resource_version`` is too old: list again then.
        """
        params = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(_WATCH_SECONDS)}
        if resource_version is None:
            params |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        else:
            params["resourceVersion"] = resource_version
        if selector:
            params["labelSelector"] = selector
        headers = {"Accept": _METADATA.format("")} if metadata_only else None
        path = kind.path(namespace)
        try:
            async with self._request(
                "watch", kind, "GET", path, params=params, headers=headers, client_timeout=_WATCH_TIMEOUT
            ) as response:
                with transport_errors("GET", path):
                    async for event in watch_events(response):
                        yield event
        except Rejected as error:
            if error.status == 422 and resource_version is None:
                raise WatchListUnsupported(error.status, error.message) from error
            raise

    # Writes

    async def apply(
        self,
        kind: Kind,
        body: Object,
        *,
        subresource: str | None = None,
        manager: str = FIELD_MANAGER,
        dry_run: bool = False,
        on_warning: Callable[[str], None] | None = None,
    ) -> Object:
        """Send a server-side apply that takes the ownership of fields of other managers (``force``).

        Args:
            dry_run: validate without storing.
            on_warning: called with each warning of the API server.
        """
        client_timeout = self._write_timeout()
        metadata = body["metadata"]
        return await self._json(
            "verify" if dry_run else "apply",
            kind,
            "PATCH",
            kind.path(metadata["namespace"], metadata["name"], subresource),
            params={"fieldManager": manager, "force": "true"} | ({"dryRun": "All"} if dry_run else {}),
            body=_yaml(body),
            headers={"Content-Type": _APPLY},
            client_timeout=client_timeout,
            on_warning=on_warning,
        )

    async def create(self, kind: Kind, body: Object) -> Object:
        client_timeout = self._write_timeout()
        return await self._json(
            "create",
            kind,
            "POST",
            kind.path(body["metadata"]["namespace"]),
            params={"fieldManager": FIELD_MANAGER},
            body=body,
            client_timeout=client_timeout,
        )

    async def replace(self, kind: Kind, body: Object) -> Object:
        """Update an object. Raises Conflict if the resourceVersion in ``body`` is not the current one."""
        metadata = body["metadata"]
        return await self._json(
            "update",
            kind,
            "PUT",
            kind.path(metadata["namespace"], metadata["name"]),
            params={"fieldManager": FIELD_MANAGER},
            body=body,
        )

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str) -> None:
        """Delete the object with this UID. Raises Conflict if another object has the name."""
        client_timeout = self._write_timeout()
        await self._json(
            "delete",
            kind,
            "DELETE",
            kind.path(namespace, name),
            body={"preconditions": {"uid": uid}, "propagationPolicy": "Background"},
            client_timeout=client_timeout,
        )

    def _write_timeout(self) -> aiohttp.ClientTimeout:
        """A write ends before the lease expires."""
        return aiohttp.ClientTimeout(total=min(self.fence(), _REQUEST_SECONDS), connect=_CONNECT_SECONDS)


def _yaml(body: Object) -> bytes:
    """Encode JSON that has the same meaning as YAML, which the API server parses an apply as.

    Characters that YAML treats as line ends, or that are not printable, are escaped.
    """
    data: bytes = json.encode(body)
    if data.isascii() and b"\x7f" not in data:
        return data
    return _NOT_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", data.decode()).encode()
