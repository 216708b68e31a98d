"""Builds the pod templates of workers and frontends. Pure.

Imports ``observe.snapshot`` and the modules of ``plan`` that name the resources it mounts.
"""
