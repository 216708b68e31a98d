"""The operating-system process: addresses, threads, logging, shutdown.

Imports nothing of the other folders.
"""
