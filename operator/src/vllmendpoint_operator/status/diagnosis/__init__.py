"""Explain why a pod is not ready, from its status and its worker's report. One module per kind of cause.

Pure. Imports ``components`` and ``observe`` only.
"""
