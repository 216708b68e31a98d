"""Whether a live object is as it should be."""

import re
from decimal import Decimal
from typing import Any, Final

__all__ = ["differs"]

_ATOMIC: Final = frozenset(
    {"selector", "podSelector", "namespaceSelector", "labelSelector", "nodeSelector", "ingress"}
)
"""What server-side apply replaces as a whole, and to what the API server adds nothing: one label more
selects other pods."""
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
"""Lists that server-side apply merges by a key; all others it replaces (``subjects``, for instance)."""
_DEFAULTS: Final = {"protocol": "TCP"}
"""Of keys that the API server fills in."""


def differs(desired: Any, live: Any, field: str = "") -> bool:
    """Whether applying ``desired`` would change ``live``: something of it is absent or different.

    What the API server adds (defaults, status) does not count, nor what others added to a keyed list,
    since an apply leaves it there; a field taken out shows in the digest that every child carries.
    Quantities compare by value.
    """
    if desired == live:
        return False
    if field in _ATOMIC:
        return differs(desired, live) or differs(live, desired)
    if isinstance(desired, dict) and isinstance(live, dict):
        return any(
            differs(value, live[key], key) if key in live else not _dropped(value, key)
            for key, value in desired.items()
        )
    if isinstance(desired, list) and isinstance(live, list):
        keys = _LIST_KEYS.get(field)
        if keys is not None:
            by_key = {_key(item, keys): item for item in live}
            return any(differs(item, by_key.get(_key(item, keys), {})) for item in desired)
        return len(desired) != len(live) or any(
            differs(item, other) for item, other in zip(desired, live, strict=True)
        )
    return not _same_quantity(desired, live)


def _key(item: dict[str, Any], keys: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(item.get(key, _DEFAULTS.get(key)) for key in keys)


def _dropped(value: Any, field: str = "") -> bool:
    """The API server leaves zero values out: an absent and an empty field are one. But for a selector, of
    which an empty one takes all, and none takes nothing."""
    return value is None or (value in ({}, [], "", 0, False) and field not in _SELECTORS)


_QUANTITY = re.compile(r"^([+-]?[0-9.]+(?:[eE][+-]?[0-9]{1,3})?)([a-zA-Z]*)$")
"""Other text looks like one now and then: a digest of digits with one ``e`` among them."""
_SUFFIX: Final = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    **{s: Decimal(10) ** (3 * i) for i, s in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    **{s: Decimal(1024) ** i for i, s in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
}


def _same_quantity(a: Any, b: Any) -> bool:
    if not isinstance(a, str | int) or not isinstance(b, str | int):
        return False
    x, y = _quantity(str(a)), _quantity(str(b))
    return x is not None and x == y


def _quantity(text: str) -> Decimal | None:
    match = _QUANTITY.match(text)
    if match is None or match[2] not in _SUFFIX:
        return None
    try:
        return Decimal(match[1]) * _SUFFIX[match[2]]
    except ArithmeticError:
        return None
