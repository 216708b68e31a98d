"""Installs the Python packages that the user requests, before the engine starts.

Imports ``options`` and ``process``.
"""
