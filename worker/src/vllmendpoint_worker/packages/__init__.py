"""Installs the Python packages that the user requests, before the engine starts.

Imports ``config``, ``options`` and ``process``.
"""
