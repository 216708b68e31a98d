"""Records the progress of vLLM's scheduler for :mod:`vllmendpoint_worker.probing.progress`."""

from typing import Any

from vllm.v1.engine import FinishReason
from vllm.v1.metrics.loggers import StatLoggerBase

from vllmendpoint_worker.probing.progress import PROGRESS

__all__ = ["ProgressLogger"]

_SUCCESSFUL = frozenset({FinishReason.STOP, FinishReason.LENGTH, FinishReason.REPETITION})


class ProgressLogger(StatLoggerBase):  # type: ignore[misc]  # vLLM is not typed
    """Entry point of vLLM's ``vllm.stat_logger_plugins``, loaded in the process of the engine client.

    Records the tokens of each step (``--enable-logging-iteration-details``) and the requests that ended.
    vLLM creates one for each data-parallel rank.
    """

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        del vllm_config
        PROGRESS.add_rank(engine_index)

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        del mm_cache_stats
        progress = PROGRESS.rank(engine_idx)
        if scheduler_stats is not None:
            progress.holds_kv_blocks = scheduler_stats.kv_cache_usage > 0
        details = scheduler_stats.iteration_details if scheduler_stats is not None else None
        if details is not None and not details.is_dummy:
            tokens = (
                details.num_ctx_tokens + details.num_generation_tokens + details.num_encoder_output_tokens
            )
            progress.record_step(tokens, details.elapsed_ms / 1000.0)
            # vLLM's own logger is called later and would log a line for every engine step.
            scheduler_stats.iteration_details = None
        if iteration_stats is not None and iteration_stats.finished_requests:
            progress.record_finished(
                (request.request_id or "", request.finish_reason in _SUCCESSFUL)
                for request in iteration_stats.finished_requests
            )

    def log_engine_initialized(self) -> None:
        """Nothing to log."""
