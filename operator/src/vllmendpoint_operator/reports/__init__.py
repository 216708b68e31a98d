"""Keeps a report stream open to every worker pod.

``state`` is pure; ``streams`` imports ``cache`` for its compression.
"""
