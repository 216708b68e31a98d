"""Imports the customer's script and functions, and restores the process state that an import changes.

Imports ``config``, ``packages`` and ``process``. docs/tasks/handlers.md lists what a script may change.
"""
