"""Downloads models and artifacts from the hub and from S3.

Imports ``payload`` for the origin of a setting, and ``process``.
"""
