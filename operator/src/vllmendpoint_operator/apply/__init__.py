"""Makes the children of an endpoint match its plan: ``diff`` computes actions, ``execute`` writes them.

Imports ``desired_state``, ``observe.snapshot``, ``cache`` and ``kube``; all modules but ``execute`` are pure.
"""
