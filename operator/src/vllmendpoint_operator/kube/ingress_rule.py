"""Validates a NetworkPolicyIngressRule of the Kubernetes API in the operator's settings.

The models of the package ``kubernetes`` do not validate CIDRs, port names and exclusive fields. An invalid
rule must fail at the start of the operator, not in the NetworkPolicy of every endpoint.
"""

from ipaddress import ip_network
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

__all__ = ["IngressRule"]


def _network(text: str) -> str:
    ip_network(text, strict=False)
    if "/" not in text:
        raise ValueError("must be a CIDR, such as 169.254.7.127/32")
    return text


_Cidr = Annotated[str, AfterValidator(_network)]
_Port = Annotated[int, Field(ge=1, le=65_535)]


def _port_name(text: str) -> str:
    if not any(letter.isalpha() for letter in text) or "--" in text:
        raise ValueError("a port name must contain a letter and must not contain '--'")
    return text


_PortName = Annotated[
    str, Field(pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=15), AfterValidator(_port_name)
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    def wire(self) -> dict[str, Any]:
        """Return the rule as the API server stores it, so that a live NetworkPolicy compares equal."""
        rule: dict[str, Any] = _without_empty(self.model_dump(by_alias=True, exclude_none=True))
        return rule


def _without_empty(value: Any) -> Any:
    """Remove empty lists and maps, except empty selectors, which select everything."""
    if isinstance(value, dict):
        inner = {key: _without_empty(item) for key, item in value.items()}
        return {key: item for key, item in inner.items() if key.endswith("Selector") or item not in ([], {})}
    if isinstance(value, list | tuple):
        return [_without_empty(item) for item in value]
    return value


class _Expression(_Model):
    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[str] = []


class _Selector(_Model):
    match_labels: Annotated[dict[str, str], Field(alias="matchLabels")] = {}
    match_expressions: Annotated[list[_Expression], Field(alias="matchExpressions")] = []


class _IpBlock(_Model):
    cidr: _Cidr
    excluded: Annotated[list[_Cidr], Field(alias="except")] = []


class _Peer(_Model):
    ip_block: Annotated[_IpBlock | None, Field(alias="ipBlock")] = None
    namespace_selector: Annotated[_Selector | None, Field(alias="namespaceSelector")] = None
    pod_selector: Annotated[_Selector | None, Field(alias="podSelector")] = None

    @model_validator(mode="after")
    def _one_of(self) -> "_Peer":
        selectors = self.namespace_selector, self.pod_selector
        if (self.ip_block is None) == (selectors == (None, None)):
            raise ValueError(
                "a peer needs either ipBlock, or at least one of namespaceSelector and podSelector"
            )
        return self


class _PolicyPort(_Model):
    port: _Port | _PortName | None = None
    end_port: Annotated[_Port | None, Field(alias="endPort")] = None
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"

    @model_validator(mode="after")
    def _range(self) -> "_PolicyPort":
        if self.end_port is not None and not (isinstance(self.port, int) and self.port <= self.end_port):
            raise ValueError("endPort requires a numeric port that is not larger than endPort")
        return self


class IngressRule(_Model):
    """Peers and ports. A rule without peers allows all peers; a rule without ports allows all ports."""

    peers: Annotated[list[_Peer], Field(alias="from")] = []
    ports: list[_PolicyPort] = []

    @model_validator(mode="after")
    def _restricts(self) -> "IngressRule":
        if not self.peers and not self.ports:
            raise ValueError("a rule needs from or ports: without both it opens every port to every peer")
        return self
