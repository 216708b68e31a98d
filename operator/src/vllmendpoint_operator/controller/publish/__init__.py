"""Publishes the result of a reconcile: writes the status and records Events.

``events`` and ``status_write_limiter`` are pure. Imports ``endpoint_store`` and folders below ``controller``.
"""
