"""Options that Dynamo's frontend and vLLM's HTTP server both need: given to one, they go to both.

Only where the frontend is Managed: callers then use either server, and expect the same answers. Pure, but for
the file that a chat template becomes.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vllmendpoint_api import Problem

from .conflicts import FALSE, REASON_BY_SOURCE, OptionSetting, canonical_form, destination

__all__ = ["ParserNames", "SharedOptions", "engine_arguments", "share_options"]

_DYNAMO_NAMES: Final = {
    "deepseek_v31": "deepseek_v3_1",
    "deepseek_v32": "deepseek_v3_2",
    "openai": "harmony",
    "phi4_mini_json": "phi4",
    "openai_gptoss": "gpt_oss",
    "minimax_m2_append_think": "minimax_append_think",
}
"""vLLM's name of a parser -> Dynamo's for the same format, where they differ."""


@dataclass(frozen=True, slots=True)
class ParserNames:
    """Names of parsers that a server has."""

    tools: frozenset[str]
    reasoning: frozenset[str]


@dataclass(frozen=True, slots=True)
class SharedOptions:
    """What is added so that both servers behave alike."""

    engine: tuple[str, ...] = ()
    """Arguments of the engine; Dynamo registers the model with them."""
    frontend: tuple[str, ...] = ()
    """Arguments of vLLM's HTTP server alone."""
    template: str | None = None
    """A chat template, in one line or as a path, that Dynamo gets as a file."""
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class _Options:
    """The options given, by the parser's names; the first place counts (a later one is equal, or refused)."""

    found: dict[str, OptionSetting] = field(default_factory=dict)

    def add(self, name: str, given: OptionSetting) -> None:
        self.found.setdefault(name, given)

    def value(self, option: str) -> str:
        given = self.found.get(destination(option))
        return given.value[-1] if given is not None and given.value else ""


def share_options(
    given: Iterable[OptionSetting], parser_names: Mapping[str, str], vllm: ParserNames, dynamo: ParserNames
) -> SharedOptions:
    """``parser_names``: option -> the parser's name for it."""
    options = _Options()
    for each in given:
        name, value = canonical_form(each, parser_names)
        if value != FALSE:
            options.add(name, each)
    parts = (
        _share_tool_parser(options, vllm.tools, dynamo.tools),
        _share_reasoning_parser(options, vllm.reasoning, dynamo.reasoning),
        _share_chat_template(options),
    )
    return SharedOptions(
        engine=tuple(token for part in parts for token in part.engine),
        frontend=tuple(token for part in parts for token in part.frontend),
        template=parts[-1].template,
        problems=tuple(problem for part in parts for problem in part.problems),
        warnings=tuple(warning for part in parts for warning in part.warnings),
    )


def _share_tool_parser(options: _Options, vllm: frozenset[str], dynamo: frozenset[str]) -> SharedOptions:
    theirs, ours = options.value("--dyn-tool-call-parser"), options.value("--tool-call-parser")
    if (auto := options.found.get(destination("--enable-auto-tool-choice"))) and not (ours or theirs):
        problem = auto.origin.violation(
            "needs the name of a parser",
            "set --tool-call-parser too",
            reason=REASON_BY_SOURCE[auto.origin.source],
        )
        return SharedOptions(problems=(problem,))
    if ours and not theirs:
        return _to_dynamo(options, "--tool-call-parser", "--dyn-tool-call-parser", dynamo)
    if theirs and not ours:
        name = _vllm_name(theirs, vllm)
        if name is None:
            return _unknown_to_vllm("--dyn-tool-call-parser", "tool calls")
        choice = () if auto else ("--enable-auto-tool-choice",)
        return SharedOptions(frontend=(*choice, "--tool-call-parser", name))
    return SharedOptions()


def _share_reasoning_parser(options: _Options, vllm: frozenset[str], dynamo: frozenset[str]) -> SharedOptions:
    theirs, ours = options.value("--dyn-reasoning-parser"), options.value("--reasoning-parser")
    if ours and not theirs:
        return _to_dynamo(options, "--reasoning-parser", "--dyn-reasoning-parser", dynamo)
    if theirs and not ours:
        name = _vllm_name(theirs, vllm)
        if name is None:
            return _unknown_to_vllm("--dyn-reasoning-parser", "reasoning")
        return SharedOptions(frontend=("--reasoning-parser", name))
    return SharedOptions()


def _share_chat_template(options: _Options) -> SharedOptions:
    """The other direction needs no argument: vLLM's server takes Dynamo's template where it has none."""
    ours = options.value("--chat-template")
    return (
        SharedOptions(template=ours)
        if ours and not options.value("--custom-jinja-template")
        else SharedOptions()
    )


def _to_dynamo(options: _Options, option: str, dynamo: str, known: frozenset[str]) -> SharedOptions:
    given = options.found[destination(option)]
    name = given.value[-1]
    name = name if name in known else _DYNAMO_NAMES.get(name, name)
    if name in known:
        return SharedOptions(engine=(dynamo, name))
    problem = given.origin.violation(
        "names a parser that Dynamo's frontend, and so status.url, does not have",
        f"set {dynamo} too, to one of {', '.join(sorted(known))}, or set frontend.mode to None",
        reason=REASON_BY_SOURCE[given.origin.source],
    )
    return SharedOptions(problems=(problem,))


def _vllm_name(name: str, known: frozenset[str]) -> str | None:
    if name in known:
        return name
    return next((ours for ours, theirs in _DYNAMO_NAMES.items() if theirs == name and ours in known), None)


def _unknown_to_vllm(option: str, what: str) -> SharedOptions:
    why = f"vLLM has no parser of the name that {option} gives"
    return SharedOptions(warnings=(f"The server on port 8080 does not parse {what}: {why}.",))


def engine_arguments(shared: SharedOptions) -> list[str]:
    """What the engine's arguments become longer by. Writes a template that is given in one line to a file,
    which Dynamo wants; blocks. A path that is not there is Dynamo's to refuse.
    """
    if shared.template is None:
        return [*shared.engine]
    return [*shared.engine, "--custom-jinja-template", str(_template_file(shared.template))]


def _template_file(text: str) -> Path:
    """As vLLM tells a path from a template: by the characters that no path of its users has."""
    path = Path(text)
    try:
        if path.is_file() or not any(character in text for character in "{}\n"):
            return path
    except OSError:  # too long for a path
        pass
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"vllmendpoint-chat-template-{name}.jinja"
    path.write_text(text)
    return path
