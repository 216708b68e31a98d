"""Makes the cluster match a plan: server-side apply of what differs, deletion of what is no longer planned.

Imports ``desired_state``, ``observe.snapshot``, ``cache`` and ``kube``.
"""
