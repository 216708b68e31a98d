"""Imports the customer's script and functions, and restores the process state that an import changes.

Imports ``config``, ``packages`` and ``process``. The page docs/handlers.md has what a script may change.
"""
