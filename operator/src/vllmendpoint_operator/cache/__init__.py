"""Lists and watches the resources that a reconcile reads, and keeps them compressed in memory.

Imports ``kube``.
"""
