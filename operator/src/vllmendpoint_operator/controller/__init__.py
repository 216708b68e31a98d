"""Runs reconciles: work queue, leader election, watched namespaces, status writes and Events.

Imports every folder below it; only ``main`` imports it.
"""
