"""Installs the Python packages that the user requests, before vLLM is imported.

Imports ``options`` and ``process``.
"""
