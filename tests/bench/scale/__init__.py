"""Cost of a thousand endpoints, compared with a minimal operator that creates the same children.

Run ``python -m tests.bench.scale``. Nodes, pods and workers are simulated, everything else is real.
"""
