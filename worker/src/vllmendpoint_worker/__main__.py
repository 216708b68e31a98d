"""``python -m vllmendpoint_worker <engine arguments>``.

Imports nothing at module level, because vLLM's child processes import this module again.
"""

if __name__ == "__main__":
    import sys

    from .start import start

    start(sys.argv[1:])
