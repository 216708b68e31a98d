"""The client of the Kubernetes API and its objects: kinds, lists, metadata, and how two objects compare.

Imports only ``errors``, and is imported by every other folder.
"""
