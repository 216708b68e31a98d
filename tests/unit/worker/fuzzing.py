"""Random values of settings, files and reports. The examples are deterministic."""

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from vllmendpoint_api import ModelType

SECRET = "QXZHUNTER2"


def fuzz(examples: int) -> settings:
    """Hypothesis settings of a test with this number of examples."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


words = st.sampled_from(
    ["prompt", "messages", "input", "max_tokens", "temperature", "stream", "seed", "stop", "logit_bias"]
    + ["_health_check", "_HEALTH_CHECK", "max_tokenz", "role", "content", SECRET, "", "a" * 200]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63 - 1, 2**63, -(2**63), 10**400, 0, 1])
    | st.floats()
    | st.text(max_size=8)
    | st.just(SECRET)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(words | st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
valid_payloads = st.fixed_dictionaries(
    {"prompt": st.text(min_size=1, max_size=8)},
    optional={"max_tokens": st.integers(1, 9), "temperature": st.floats(0, 2), "seed": st.integers(0, 99)},
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.just("user"), "content": st.text(min_size=1, max_size=5)}),
    min_size=1,
    max_size=2,
)
payloads = (
    valid_payloads
    | st.fixed_dictionaries({"messages": messages}, optional={"max_tokens": scalars})
    | st.fixed_dictionaries({"input": st.text(min_size=1, max_size=5)})
    | st.dictionaries(words, values, max_size=4)
    | values
)
model_types = st.sampled_from([*ModelType, None])
raw_text = st.text(st.characters(exclude_characters="\x00", exclude_categories=[]), max_size=40).filter(
    # An environment variable contains text, and other bytes as surrogates (surrogateescape).
    lambda text: all(not "\ud800" <= char <= "\udfff" or "\udc80" <= char <= "\udcff" for char in text)
)


def deep(levels: int) -> Any:
    """A list that is nested this deep."""
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value
