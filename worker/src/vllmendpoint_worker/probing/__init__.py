"""Probes the engine and decides whether it generates.

Imports ``payload`` and ``serving``.
"""
