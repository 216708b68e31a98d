"""``python -m vllmendpoint_worker <engine arguments>``.

vLLM's spawned children import this file again: it imports nothing at module level.
"""

if __name__ == "__main__":
    import sys

    from .start import start

    start(sys.argv[1:])
