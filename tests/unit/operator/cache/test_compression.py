"""Compression with an earlier text as dictionary."""

import random

from vllmendpoint_operator.cache.compression import ObjectCompressor


def text(name):
    return f"{{metadata: {name}}}".encode() + "é\n".encode() * 500


def test_decompress_returns_the_compressed_text():
    compressor = ObjectCompressor()
    texts = [text("first"), text("second"), b"{}", b"", random.Random(1).randbytes(200_000), text("first")]
    compressed = [compressor.compress(item, "sort") for item in texts]
    assert [compressor.decompress(item) for item in compressed] == texts


def test_a_similar_text_takes_a_few_bytes():
    compressor = ObjectCompressor()
    compressor.compress(text("first"), "sort")
    assert len(compressor.compress(text("second"), "sort")) < 60


def test_more_keys_than_dictionaries_work():
    compressor = ObjectCompressor()
    compressed = [compressor.compress(text(number), f"sort-{number}") for number in range(300)]
    assert [compressor.decompress(item) for item in compressed] == [text(number) for number in range(300)]
