"""``python -m vllmendpoint_worker.frontend [arguments of dynamo.frontend]``."""

if __name__ == "__main__":
    from .entry import start

    start()
