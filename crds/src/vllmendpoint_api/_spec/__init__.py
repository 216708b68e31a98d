"""The models of ``spec``, one module per part. ``endpoint`` holds the root model.

Imports ``_options`` and the modules of the package's root.
"""
