"""Tokens of clients' prompts from Dynamo's metrics. The text was recorded from Dynamo 1.6.1."""

from vllmendpoint_worker.frontend.kv_events.usage import (
    TokenUsage,
    block_sizes,
    own_tokens,
    ranks,
    router_tokens,
)

_LABELS = (
    'dynamo_component="backend",dynamo_namespace="team_r1",model="m",phase="aggregated",worker_id="88ef"'
)
METRICS = f"""\
dynamo_frontend_model_kv_cache_block_size{{model="m"}} 16
dynamo_frontend_input_sequence_tokens_sum{{model="m"}} 2336
dynamo_component_router_input_sequence_tokens_sum{{{_LABELS}}} 2000
dynamo_component_router_input_sequence_tokens_sum{{{_LABELS.replace("r1", "r2")}}} 336
dynamo_component_router_kv_selected_cached_prefix_tokens_total{{{_LABELS}}} 1344
dynamo_component_router_worker_registered{{dp_rank="0",router_worker_id="7",worker_id="88ef"}} 1
dynamo_component_router_worker_registered{{dp_rank="1",router_worker_id="7",worker_id="88ef"}} 1
dynamo_component_router_worker_registered{{dp_rank="0",router_worker_id="8",worker_id="88ef"}} 0
dynamo_component_router_kv_best_eligible_cached_prefix_tokens_total{{{_LABELS}}} 1500
"""


def answer(prompt: int, rate: float) -> dict[str, object]:
    return {"usage": {"prompt_tokens": prompt}, "nvext": {"timing": {"kv_hit_rate": rate}}}


def test_the_tokens_of_all_worker_sets_are_added() -> None:
    assert router_tokens(METRICS) == TokenUsage(2336, 1344)
    assert block_sizes(METRICS) == {"m": 16}
    assert ranks(METRICS) == {7: (0, 1)}
    assert router_tokens("") == TokenUsage()


def test_the_tokens_of_own_requests_follow_from_the_rate() -> None:
    assert own_tokens(answer(172, 10 / 11), 16) == TokenUsage(172, 160)
    assert own_tokens(answer(172, 0.0), 16) == TokenUsage(172, 0)
    assert own_tokens({"usage": {}}, 16) == TokenUsage()
    assert own_tokens(None, 16) == TokenUsage()


def test_the_counters_of_clients_never_decrease() -> None:
    before = TokenUsage(100, 50)
    assert TokenUsage(400, 200).without(TokenUsage(250, 120), before) == TokenUsage(150, 80)
    assert TokenUsage(300, 160).without(TokenUsage(250, 120), before) == TokenUsage(100, 50)
