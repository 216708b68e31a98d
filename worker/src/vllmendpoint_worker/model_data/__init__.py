"""Downloads models and model data from the hub and from S3.

Imports ``process``.
"""
