"""Streams the report of every worker pod.

Imports ``cache`` for its compression.
"""
