"""Probes the route to each worker through the frontend. ``routes`` decides and is pure.

``prober`` also runs the checks of ``kv_events``.
"""
