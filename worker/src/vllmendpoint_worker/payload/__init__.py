"""Which health-check payloads a model accepts. Pure.

Imports nothing of the other folders.
"""
