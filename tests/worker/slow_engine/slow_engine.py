"""A scheduler (vLLM's ``--scheduler-cls``) that waits ``ENGINE_STEP_SECONDS`` before each step, so that the
toy model's requests are in flight for long enough to be interrupted. It is vLLM's own in all else.
"""

import os
import time
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler


class SlowScheduler(AsyncScheduler):  # type: ignore[misc]
    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        time.sleep(float(os.environ["ENGINE_STEP_SECONDS"]))
        return super().schedule(*args, **kwargs)
