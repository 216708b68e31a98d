"""Imports the customer's script and functions, and restores the process state that an import changes.

Imports ``config`` and ``process``.
"""
