"""Compares a desired object with a live one, as a server-side apply of the desired object would.

The packages ``kubernetes`` and ``kopf`` do not compare by the merge rules of server-side apply. The
alternative is a dry run, which is one API request per object and reconcile; this comparison makes a reconcile
without changes free of requests.
"""

import re
from collections.abc import Iterator
from decimal import ROUND_UP, Decimal
from typing import Any, Final

__all__ = ["differences", "differs"]

_ATOMIC: Final = frozenset(
    {"selector", "podSelector", "namespaceSelector", "labelSelector", "nodeSelector", "ingress"}
)
"""Fields that server-side apply replaces as a whole and to which the API server adds no defaults. An
additional label in a selector selects other pods, so it is a difference."""
_SELECTORS: Final = frozenset({"podSelector", "namespaceSelector", "labelSelector"})
_LIST_KEYS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("containers", "initContainers", "env", "volumes", "imagePullSecrets"), ("name",)),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "ports": ("port", "containerPort", "protocol"),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "ownerReferences": ("uid",),
}
"""Lists that server-side apply merges by these keys. It replaces all other lists, such as ``subjects``."""
_RESOURCE_LISTS: Final = frozenset({"limits", "requests", "overhead"})
"""Maps of quantities, which the API server rounds up to a thousandth."""
_DEFAULTS: Final = {"protocol": "TCP"}
"""Defaults of list keys."""


def differs(desired: Any, live: Any, field: str = "") -> bool:
    """Whether applying ``desired`` would change ``live``.

    Fields that only ``live`` has do not count: the API server added them (defaults, status), or another
    client did, and an apply keeps them. A field that was removed from ``desired`` changes the applied hash
    instead, which every child carries as an annotation. Quantities compare as the API server stores them.
    """
    return next(differences(desired, live, field), None) is not None


def differences(
    desired: Any, live: Any, field: str = "", path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Iterate over the values of ``desired`` that differ: the path, and the value in ``live`` (None if
    absent).

    In a path, an item of a list that is merged by keys appears as ``[key]``, another item as ``[index]``.
    """
    if desired == live:
        return
    if field in _ATOMIC:
        if differs(desired, live) or differs(live, desired):
            yield path, live
    elif isinstance(desired, dict) and isinstance(live, dict):
        yield from (_quantities if field in _RESOURCE_LISTS else _fields)(desired, live, path)
    elif isinstance(desired, list) and isinstance(live, list):
        yield from _items(desired, live, field, path)
    elif not _same_quantity(desired, live, _NANO):
        yield path, live


def _fields(
    desired: dict[str, Any], live: dict[str, Any], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in desired.items():
        if key in live:
            yield from differences(value, live[key], key, (*path, key))
        elif not _is_omitted(value, key):
            yield (*path, key), None


def _items(
    desired: list[Any], live: list[Any], field: str, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    keys = _LIST_KEYS.get(field)
    if keys is not None:
        by_key = {_key(item, keys): item for item in live}
        for item in desired:
            key = _key(item, keys)
            at = (*path, f"[{'/'.join(str(part) for part in key if part is not None)}]")
            if key in by_key:
                yield from differences(item, by_key[key], path=at)
            else:
                yield at, None
    elif len(desired) != len(live):
        yield path, live
    else:
        for index, (item, other) in enumerate(zip(desired, live, strict=True)):
            yield from differences(item, other, path=(*path, f"[{index}]"))


def _quantities(
    desired: dict[str, Any], live: dict[str, Any], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, quantity in desired.items():
        if quantity is not None and not _same_quantity(quantity, live.get(name), _MILLI):
            yield (*path, name), live.get(name)


def _key(item: dict[str, Any], keys: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(item.get(key, _DEFAULTS.get(key)) for key in keys)


def _is_omitted(value: Any, field: str) -> bool:
    """Whether the API server omits the value, as it does with zero values.

    It keeps empty selectors: an empty selector selects all objects, an absent one selects none.
    """
    return value is None or (value in ({}, [], "", 0, False) and field not in _SELECTORS)


_QUANTITY = re.compile(r"^([+-]?[0-9.]+(?:[eE][+-]?[0-9]{1,3})?)([a-zA-Z]*)$")
"""The exponent is limited because other text can match, such as a digest of digits and one ``e``."""
_SUFFIX: Final = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    **{s: Decimal(10) ** (3 * i) for i, s in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    **{s: Decimal(1024) ** i for i, s in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
}


_NANO: Final = Decimal("1e-9")
_MILLI: Final = Decimal("1e-3")
_MAX_QUANTITY: Final = Decimal(2**63 - 1)


def _same_quantity(a: Any, b: Any, step: Decimal) -> bool:
    if not isinstance(a, str | int | float) or not isinstance(b, str | int | float):
        return False
    x, y = _quantity(str(a), step), _quantity(str(b), step)
    return x is not None and x == y


def _quantity(text: str, step: Decimal) -> Decimal | None:
    """Parse a quantity as the API server stores it; None if ``text`` is no quantity.

    The API server rounds up to a multiple of ``step`` and limits the value to the largest int64.
    """
    match = _QUANTITY.match(text.strip())
    if match is None or match[2] not in _SUFFIX:
        return None
    try:
        exact = Decimal(match[1]) * _SUFFIX[match[2]]
        if abs(exact) >= _MAX_QUANTITY:
            return _MAX_QUANTITY.copy_sign(exact)
        return exact.quantize(_NANO, ROUND_UP).quantize(step, ROUND_UP)
    except ArithmeticError:
        return None
