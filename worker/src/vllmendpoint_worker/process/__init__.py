"""The operating-system process: addresses, threads, background tasks, logging, shutdown.

Imports none of the other folders.
"""
