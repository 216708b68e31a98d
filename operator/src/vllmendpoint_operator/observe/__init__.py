"""Collects everything known about one endpoint into a frozen :class:`~.snapshot.Observed`.

``snapshot``, ``references`` and ``partial_spec`` are pure; ``observer`` reads ``cache`` and ``reports``.
"""
