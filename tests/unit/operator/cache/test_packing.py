"""Texts as few bytes, and whole again."""

import random

from vllmendpoint_operator.cache.compression import Packer


def text(name):
    return f"{{metadata: {name}}}".encode() + "é\n".encode() * 500


def test_what_was_packed_comes_back_as_it_was():
    packer = Packer()
    texts = [text("first"), text("second"), b"{}", b"", random.Random(1).randbytes(200_000), text("first")]
    packed = [packer.pack(item, "sort") for item in texts]
    assert [packer.unpack(item) for item in packed] == texts


def test_the_second_of_a_sort_costs_little():
    packer = Packer()
    packer.pack(text("first"), "sort")
    assert len(packer.pack(text("second"), "sort")) < 60


def test_more_sorts_than_are_told_apart_are_packed_all_the_same():
    packer = Packer()
    packed = [packer.pack(text(number), f"sort-{number}") for number in range(300)]
    assert [packer.unpack(item) for item in packed] == [text(number) for number in range(300)]
