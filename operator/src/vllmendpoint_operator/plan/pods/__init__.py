"""The pod templates of workers and frontends, one module per concern. Pure.

Imports ``observe.snapshot`` and the modules of ``plan`` that name the resources it mounts.
"""
