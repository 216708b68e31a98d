"""What a thousand endpoints cost, next to the least that an operator of the same children can be.

``python -m tests.bench.scale`` measures; nodes, pods and workers are simulated, all else is real.
"""
