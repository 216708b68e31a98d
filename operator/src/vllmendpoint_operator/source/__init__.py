"""Watches VLLMEndpoints with kopf and passes upserts and deletions to a handler.

The only folder that imports kopf. Imports ``kube`` and ``errors``; only ``main`` imports it.
"""
