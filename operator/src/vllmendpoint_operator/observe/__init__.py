"""Collects the observed state of one endpoint as a frozen :class:`~.snapshot.Observed`.

``snapshot``, ``references`` and ``partial_spec`` are pure; ``observer`` reads ``cache`` and ``reports``, and
``config_maps`` reads the ConfigMaps that the spec refers to.
"""
