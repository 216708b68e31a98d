"""Lists that are split while they arrive, with any content and any size of chunks."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import json as raw

from vllmendpoint_operator.kube.lists import split_list

MARK = '},{"metadata":{"name":"x"}}'
NESTED = [{"metadata": {"name": "x"}}, {"metadata": {"name": "y"}, "spec": [{"metadata": {"name": "z"}}]}]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.just(MARK),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.just(NESTED)
    ),
    max_leaves=6,
)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=5)
OBJECTS = st.builds(lambda name, spec: {"metadata": {"name": name}, "spec": spec}, NAMES, VALUES)
HEAD = {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}}


async def chunks(text, size):
    for at in range(0, len(text), size):
        yield text[at : at + size]


async def read(text, size):
    version, items = await split_list(chunks(text, size))
    return version, [raw.decode(raw.encode(item)) async for item in items]


def wire(found):
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")


@given(st.lists(OBJECTS, max_size=4), st.integers(1, 80), st.sampled_from(["", "\n"]))
async def test_split_list_returns_every_object_unchanged(objects, size, end):
    text = wire({**HEAD, "items": objects}) + end.encode()
    assert await read(text, size) == ("7", objects)


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_split_list_reads_lists_of_all_kinds(size):
    kind = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
    objects = [{**kind, "metadata": {"name": name}} for name in "abc"]
    assert await read(wire({**HEAD, "items": objects}), size) == ("7", objects)
    custom = {"apiVersion": "v1", "items": objects, "kind": "L", "metadata": {"resourceVersion": "8"}}
    assert await read(wire(custom), size) == ("8", objects), "the version comes last"
    assert await read(wire({**HEAD, "items": None}), size) == ("7", [])


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"kind":"Status"}',
        wire({**HEAD, "items": NESTED})[:-2],
        wire({**HEAD, "items": NESTED})[:-20],
        wire({**HEAD, "items": NESTED})[:-2] + b",null]}",
        wire({**HEAD, "items": [*NESTED, 1]}),
    ],
)
@pytest.mark.parametrize("size", [1, 10_000])
async def test_an_invalid_or_truncated_list_is_a_value_error(text, size):
    with pytest.raises(ValueError):  # noqa: PT011
        await read(text, size)


@pytest.mark.parametrize("size", [7, 10_000])
async def test_a_list_truncated_at_any_byte_is_a_value_error(size):
    text = wire({**HEAD, "items": NESTED})
    for end in range(len(text)):
        with pytest.raises(ValueError):  # noqa: PT011
            await read(text[:end], size)


async def test_an_object_is_returned_when_the_next_one_begins():
    first, second = ({"metadata": {"name": name}} for name in "ab")
    text, sent = wire({**HEAD, "items": [first, second]}), []

    async def single_bytes():
        for at in range(len(text)):
            sent.append(at)
            yield text[at : at + 1]

    _, items = await split_list(single_bytes())
    assert raw.decode(raw.encode(await anext(items))) == first
    assert len(sent) < len(text) - 6
