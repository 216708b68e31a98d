"""Checks that hold for every random configuration: it can be reported, and it is used or rejected."""

import json
from pathlib import Path
from typing import Any

from tests.unit.worker.fuzzing import SECRET
from vllmendpoint_api import (
    CONDITION_REASONS,
    Condition,
    ConfigurationReport,
    ConfigurationState,
    ModelType,
    PayloadSource,
)
from vllmendpoint_operator.reports.streams import parse
from vllmendpoint_worker.config.merge import merge
from vllmendpoint_worker.config.resolved import Resolved, Unresolved
from vllmendpoint_worker.config.sources import ConfigSources, LoadedConfiguration
from vllmendpoint_worker.options.conflicts import find_conflicts
from vllmendpoint_worker.options.sagemaker import container_environment
from vllmendpoint_worker.payload.forms import RequestFields
from vllmendpoint_worker.serving.state import WorkerState

NAMES = {"-tp": "tensor_parallel_size", "--tensor-parallel-size": "tensor_parallel_size"}
REASONS = {reason.value for reason in CONDITION_REASONS[Condition.CONFIGURATION_RESOLVED]}
SAMPLING = frozenset(
    {"model", "stream", "max_tokens", "temperature", "seed", "stop", "logit_bias", "top_p"}
    | {"frequency_penalty", "presence_penalty"}
)
FIELDS = RequestFields(
    completion=SAMPLING | {"prompt"},
    chat=SAMPLING | {"messages"},
    embedding=frozenset({"model", "input", "dimensions"}),
    classification=frozenset({"model", "input"}),
    pooling=frozenset({"model", "input"}),
    rerank=frozenset({"model", "query", "documents"}),
    score=frozenset({"model", "text_1", "text_2"}),
)


def report_of(result: Resolved | Unresolved, loaded: LoadedConfiguration | None = None) -> str:
    """The JSON of the report. The operator must be able to parse it."""
    state = WorkerState(worker_version="1", pod_uid="uid")
    common: dict[str, Any] = {}
    if loaded is not None:
        common = {"settings_hash": loaded.settings_hash, "warnings": loaded.warnings[:16]}
    if isinstance(result, Unresolved):
        assert result.problems, "rejected without a problem"
        for problem in result.problems:
            assert problem.reason in REASONS
            assert problem.field in problem.message or len(problem.field) == 128
            assert problem.message.endswith(".")
        problems = result.problems[:16]
        rejected = ConfigurationReport(state=ConfigurationState.REJECTED, problems=problems, **common)
        state.update(configuration=rejected)
    else:
        resolved = ConfigurationReport(state=ConfigurationState.RESOLVED, **common)
        state.update(configuration=resolved, health_check=result.report())
    line = json.dumps(state.report().wire()).encode()
    report = parse(line, "uid")
    if isinstance(result, Resolved):
        assert report.health_check is not None
        assert report.health_check.source == result.source
        assert report.health_check.payload_digest == result.digest
    return line.decode()


def assert_used_or_rejected(result: Resolved | Unresolved, source: PayloadSource, payload: Any) -> None:
    """The payload of the highest priority is used unchanged, or rejected with its source."""
    text = report_of(result)
    if isinstance(result, Resolved):
        assert result.source is source
        assert result.payload == payload
    else:
        assert {problem.source for problem in result.problems} == {source.value}
    if source in (PayloadSource.ENVIRONMENT, PayloadSource.CONFIG_FILE):  # they may contain a secret
        assert SECRET not in text


def resolve(loaded: LoadedConfiguration, model_type: ModelType | None = None) -> Resolved | Unresolved:
    return merge(loaded.sources, FIELDS, model_type)


def load(folder: Path, environ: dict[str, str], argv: list[str] | None = None) -> LoadedConfiguration:
    """The configuration of a process whose settings and model are in ``folder``."""
    environ = {"VLLMENDPOINT_SETTINGS_DIR": str(folder), "SAGEMAKER_MODEL_PATH": str(folder), **environ}
    container_environment(environ)
    sources = ConfigSources(environ, argv or [])
    loaded = sources.load()
    sources.fingerprints()
    return loaded


def problems_of(loaded: LoadedConfiguration) -> dict[str, str]:
    """Field -> message of every problem. The operator must be able to parse the report."""
    merged = merge(loaded.sources)
    problems = [*(merged.problems if isinstance(merged, Unresolved) else ()), *loaded.handler_problems]
    problems += [*loaded.engine.problems, *find_conflicts(loaded.engine.options, NAMES)]
    for problem in problems:
        assert problem.reason in REASONS
        assert problem.field in problem.message
        assert problem.message.endswith(".")
    state = ConfigurationState.REJECTED if problems else ConfigurationState.RESOLVED
    warnings = loaded.warnings[:16]
    worker = WorkerState(worker_version="1", pod_uid="uid")
    worker.update(
        configuration=ConfigurationReport(state=state, problems=tuple(problems[:16]), warnings=warnings)
    )
    line = json.dumps(worker.report().wire())
    assert parse(line.encode(), "uid").configuration.state == state
    return {problem.field: problem.message for problem in problems}
