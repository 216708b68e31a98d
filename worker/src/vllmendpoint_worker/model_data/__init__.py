"""Downloads models and artifacts from the hub and from S3.

Imports ``process``.
"""
