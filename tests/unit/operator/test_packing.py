"""Objects as few bytes, and whole again."""

import pytest

from vllmendpoint_operator.packing import Packer


def obj(name, **more):
    return {"metadata": {"name": name, "labels": {"a": "b"}}, "data": {"text": "é\n" * 500, **more}}


VALUES = [None, True, 0, -1, 2**53 + 1, 1.5, 1e-9, "", "\x00\u2028", [], {}, [{"a": None}]]


@pytest.mark.parametrize("value", VALUES)
def test_what_was_packed_comes_back_as_it_was(value):
    packer = Packer()
    objects = [obj("first"), obj("second", value=value), {"other": value}, {}]
    packed = [packer.pack(item, "sort") for item in objects]
    assert [packer.unpack(item) for item in packed] == objects


def test_the_second_of_a_sort_costs_little():
    packer = Packer()
    packer.pack(obj("first"), "sort")
    assert len(packer.pack(obj("second"), "sort")) < 60


def test_each_unpacking_is_a_new_object():
    packer = Packer()
    packed = packer.pack(obj("a"), "sort")
    packer.unpack(packed)["metadata"]["name"] = "changed"
    assert packer.unpack(packed) == obj("a")


def test_more_sorts_than_are_told_apart_are_packed_all_the_same():
    packer = Packer()
    packed = [packer.pack(obj(str(number)), f"sort-{number}") for number in range(300)]
    assert [packer.unpack(item)["metadata"]["name"] for item in packed] == [str(n) for n in range(300)]
