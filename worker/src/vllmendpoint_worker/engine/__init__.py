"""Composes Dynamo's and vLLM's building blocks with ours, and supervises the running engine.

Imports every other folder; only ``start`` imports it.
"""
