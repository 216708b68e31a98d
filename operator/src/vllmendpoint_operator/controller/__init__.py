"""Runs reconciles: work queue, leader election, watched namespaces, and claims of endpoints.

The subfolder ``publish`` writes statuses and Events. Imports every folder below it; only ``main`` imports it.
"""
