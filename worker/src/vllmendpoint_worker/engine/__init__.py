"""The worker's lifecycle: prepare, start, serve, reload, shut down (docs/decisions, decision 36).

Imports every other folder. Only ``start`` imports it.
"""
