"""Checks whether the router receives the KV events of each worker and rank.

``state`` and ``usage`` are pure. Imports ``probing`` and the modules of ``frontend``.
"""
