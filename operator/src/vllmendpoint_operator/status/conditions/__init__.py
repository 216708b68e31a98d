"""One module per condition. ``finding`` holds what each returns: status, reason and message. Pure.

Imports ``diagnosis`` and the other modules of ``status``, but ``endpoint_status``.
"""
