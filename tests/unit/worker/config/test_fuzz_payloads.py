"""Random health-check payloads from every source: the worker does not fail, and uses or rejects each payload.

The expected result is computed independently of the worker's code. The examples are deterministic.
"""

import json
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.worker.config.fuzz_checks import FIELDS, assert_used_or_rejected, report_of, resolve
from tests.unit.worker.fuzzing import deep, fuzz, model_types, payloads, raw_text, valid_payloads
from vllmendpoint_api import PRECEDENCE, ModelType, PayloadSource
from vllmendpoint_worker.config.merge import merge
from vllmendpoint_worker.config.payload_sources import EnvironmentPayload, PayloadSources
from vllmendpoint_worker.config.resolved import Resolved
from vllmendpoint_worker.config.sources import ConfigSources

S = PayloadSource


@given(payload=payloads, source=st.sampled_from([S.RUNTIME, S.CONFIG_FILE]), model_type=model_types)
@example(payload={"prompt": "x", "stop": deep(40)}, source=S.RUNTIME, model_type=None)
@example(payload={"prompt": "x", "seed": 2**63}, source=S.RUNTIME, model_type=None)
@example(payload={"prompt": "x", "logit_bias": {1: 1, "a": 1}}, source=S.CONFIG_FILE, model_type=None)
@example(payload={"prompt": "\ud800"}, source=S.RUNTIME, model_type=None)
@fuzz(300)
def test_a_payload_from_python_or_the_config_file_is_used_or_rejected(
    payload: Any, source: PayloadSource, model_type: Any
) -> None:
    field = "runtime" if source is S.RUNTIME else "config_payload"
    weaker = {"custom_default": {"prompt": "never"}}
    assert_used_or_rejected(
        merge(PayloadSources(**{field: payload}, **weaker), FIELDS, model_type), source, payload
    )


@given(payload=valid_payloads, model_type=st.sampled_from([ModelType.CHAT, ModelType.COMPLETION, None]))
@fuzz(120)
def test_a_valid_payload_is_used_from_every_source(payload: dict[str, Any], model_type: Any) -> None:
    for field in ("runtime", "config_payload", "custom_default"):
        result = merge(PayloadSources(**{field: payload}), FIELDS, model_type)
        assert isinstance(result, Resolved), result
        assert result.payload == payload


@given(text=raw_text | payloads.map(lambda value: json.dumps(value, default=str)), model_type=model_types)
@example(text="@", model_type=None)
@example(text="@/", model_type=None)
@example(text="@/dev/null", model_type=None)
@example(text="@" + "a" * 5000, model_type=None)
@example(text="[" * 5000, model_type=None)
@example(text='{"prompt": "x", "seed": 1e999}', model_type=None)
@example(text="\udcff", model_type=None)
@fuzz(400)
def test_the_payload_variable_is_used_or_rejected(folder: Path, text: str, model_type: Any) -> None:
    environ = {"DYN_HEALTH_CHECK_PAYLOAD": text, "VLLMENDPOINT_SETTINGS_DIR": str(folder / "none")}
    result = resolve(ConfigSources(environ).load(), model_type)
    if not text.strip():
        assert isinstance(result, Resolved)
        assert result.source in (S.MODEL_DEFAULT, S.GENERIC_DEFAULT)
        return
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError):
        payload = None
    assert_used_or_rejected(result, S.ENVIRONMENT, payload)


@given(content=st.binary(max_size=40) | payloads.map(lambda value: json.dumps(value, default=str).encode()))
@fuzz(200)
def test_the_file_that_the_payload_variable_names_is_used_or_rejected(folder: Path, content: bytes) -> None:
    file = folder / "payload.json"
    file.write_bytes(content)
    environ = {"DYN_HEALTH_CHECK_PAYLOAD": f"@{file}", "VLLMENDPOINT_SETTINGS_DIR": str(folder / "none")}
    try:
        payload = json.loads(content.decode())
    except (ValueError, RecursionError):
        payload = None
    assert_used_or_rejected(resolve(ConfigSources(environ).load()), S.ENVIRONMENT, payload)


@given(
    set_payloads=st.dictionaries(st.sampled_from([row.source for row in PRECEDENCE]), payloads),
    model_type=model_types,
)
@fuzz(300)
def test_the_source_of_the_highest_priority_is_used_or_rejected(
    set_payloads: dict[PayloadSource, Any], model_type: Any
) -> None:
    names = {S.RUNTIME: "runtime", S.CONFIG_FILE: "config_payload", S.CUSTOM_DEFAULT: "custom_default"}
    arguments: dict[str, Any] = {
        names[source]: value for source, value in set_payloads.items() if source in names
    }
    if S.ENVIRONMENT in set_payloads:
        arguments["environment_payload"] = EnvironmentPayload(set_payloads[S.ENVIRONMENT])
    order = [
        row.source
        for row in PRECEDENCE
        if row.source in (*names, S.ENVIRONMENT) and row.source in set_payloads
    ]
    result = merge(PayloadSources(**arguments), FIELDS, model_type)
    report_of(result)
    if not order:
        assert isinstance(result, Resolved)
        return
    assert_used_or_rejected(result, order[0], set_payloads[order[0]])
    if isinstance(result, Resolved):
        assert [ignored.source for ignored in result.ignored] == order[1:]
