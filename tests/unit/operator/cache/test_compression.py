"""Texts as few bytes, and whole again."""

import random

from vllmendpoint_operator.cache.compression import ObjectCompressor


def text(name):
    return f"{{metadata: {name}}}".encode() + "é\n".encode() * 500


def test_what_was_packed_comes_back_as_it_was():
    compressor = ObjectCompressor()
    texts = [text("first"), text("second"), b"{}", b"", random.Random(1).randbytes(200_000), text("first")]
    compressed = [compressor.compress(item, "sort") for item in texts]
    assert [compressor.decompress(item) for item in compressed] == texts


def test_the_second_of_a_sort_costs_little():
    compressor = ObjectCompressor()
    compressor.compress(text("first"), "sort")
    assert len(compressor.compress(text("second"), "sort")) < 60


def test_more_sorts_than_are_told_apart_are_packed_all_the_same():
    compressor = ObjectCompressor()
    compressed = [compressor.compress(text(number), f"sort-{number}") for number in range(300)]
    assert [compressor.decompress(item) for item in compressed] == [text(number) for number in range(300)]
