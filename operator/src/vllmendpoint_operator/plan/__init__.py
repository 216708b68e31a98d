"""Derives the desired state of an endpoint: all its children. Pure; ``planner`` combines the other modules.

Imports ``components``, ``desired_state``, ``kube.differences`` and the pure modules of ``observe``.
"""
