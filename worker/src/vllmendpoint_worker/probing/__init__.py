"""Probes the engine and decides whether it generates tokens.

Imports ``payload`` and ``serving``.
"""
