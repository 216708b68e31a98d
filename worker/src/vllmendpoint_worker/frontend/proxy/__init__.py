"""HAProxy before the HTTP server of Dynamo: ``configuration`` is pure, ``process`` owns the process.

See docs/decisions/0042-haproxy-before-the-frontend.md.
"""
