"""Passes options that Dynamo's frontend and vLLM's HTTP server both need to both servers.

Only for a Managed frontend: callers then use either server and expect the same answers. Pure, except that it
writes a chat template to a file.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vllmendpoint_api import Problem

from .option_setting import FALSE, OptionSetting, canonical_form, destination

__all__ = ["ParserNames", "SharedOptions", "engine_arguments", "share_options"]

_DYNAMO_NAMES: Final = {
    "deepseek_v31": "deepseek_v3_1",
    "deepseek_v32": "deepseek_v3_2",
    "openai": "harmony",
    "phi4_mini_json": "phi4",
    "openai_gptoss": "gpt_oss",
    "minimax_m2_append_think": "minimax_append_think",
}
"""vLLM's name of a parser -> Dynamo's name for the same format, if they differ."""


@dataclass(frozen=True, slots=True)
class ParserNames:
    """The tool-call and reasoning parsers of a server."""

    tools: frozenset[str]
    reasoning: frozenset[str]


@dataclass(frozen=True, slots=True)
class SharedOptions:
    """The additions that make both servers behave alike."""

    engine: tuple[str, ...] = ()
    """Arguments of the engine. Dynamo registers the model with them."""
    frontend: tuple[str, ...] = ()
    """Arguments of vLLM's HTTP server only."""
    template: str | None = None
    """A chat template, as text or as a path, that Dynamo needs as a file."""
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class _Options:
    """The settings by ``dest``. The first place counts; a later one is equal, or a conflict."""

    settings: dict[str, OptionSetting] = field(default_factory=dict)

    def find(self, option: str) -> OptionSetting | None:
        return self.settings.get(destination(option))

    def value(self, option: str) -> str:
        setting = self.find(option)
        return setting.value[-1] if setting is not None and setting.value else ""


def share_options(
    settings: Iterable[OptionSetting],
    parser_names: Mapping[str, str],
    vllm: ParserNames,
    dynamo: ParserNames,
) -> SharedOptions:
    """``parser_names``: option -> ``dest``."""
    options = _Options()
    for setting in settings:
        name, value = canonical_form(setting, parser_names)
        if value != FALSE:
            options.settings.setdefault(name, setting)
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
    for_dynamo, for_vllm = options.value("--dyn-tool-call-parser"), options.value("--tool-call-parser")
    if (auto := options.find("--enable-auto-tool-choice")) and not (for_vllm or for_dynamo):
        return SharedOptions(problems=(auto.violation("requires a parser", "Also set --tool-call-parser."),))
    if for_vllm and not for_dynamo:
        return _to_dynamo(options, "--tool-call-parser", "--dyn-tool-call-parser", dynamo)
    if for_dynamo and not for_vllm:
        name = _vllm_name(for_dynamo, vllm)
        if name is None:
            return _unknown_to_vllm("--dyn-tool-call-parser", "tool calls")
        choice = () if auto else ("--enable-auto-tool-choice",)
        return SharedOptions(frontend=(*choice, "--tool-call-parser", name))
    return SharedOptions()


def _share_reasoning_parser(options: _Options, vllm: frozenset[str], dynamo: frozenset[str]) -> SharedOptions:
    for_dynamo, for_vllm = options.value("--dyn-reasoning-parser"), options.value("--reasoning-parser")
    if for_vllm and not for_dynamo:
        return _to_dynamo(options, "--reasoning-parser", "--dyn-reasoning-parser", dynamo)
    if for_dynamo and not for_vllm:
        name = _vllm_name(for_dynamo, vllm)
        if name is None:
            return _unknown_to_vllm("--dyn-reasoning-parser", "reasoning")
        return SharedOptions(frontend=("--reasoning-parser", name))
    return SharedOptions()


def _share_chat_template(options: _Options) -> SharedOptions:
    """The reverse needs no argument: without a template of its own, vLLM's server uses Dynamo's."""
    for_vllm = options.value("--chat-template")
    if for_vllm and not options.value("--custom-jinja-template"):
        return SharedOptions(template=for_vllm)
    return SharedOptions()


def _to_dynamo(options: _Options, option: str, dynamo: str, known: frozenset[str]) -> SharedOptions:
    setting = options.settings[destination(option)]
    name = setting.value[-1]
    name = name if name in known else _DYNAMO_NAMES.get(name, name)
    if name in known:
        return SharedOptions(engine=(dynamo, name))
    problem = setting.violation(
        "names a parser that Dynamo's frontend (status.url) does not have",
        f"Also set {dynamo} to one of {', '.join(sorted(known))}, or set frontend.mode to None.",
    )
    return SharedOptions(problems=(problem,))


def _vllm_name(name: str, known: frozenset[str]) -> str | None:
    if name in known:
        return name
    return next((vllm for vllm, dynamo in _DYNAMO_NAMES.items() if dynamo == name and vllm in known), None)


def _unknown_to_vllm(option: str, content: str) -> SharedOptions:
    warning = (
        f"The server on port 8080 does not parse {content}, because vLLM does not have the parser that "
        f"{option} names."
    )
    return SharedOptions(warnings=(warning,))


def engine_arguments(shared: SharedOptions) -> list[str]:
    """The additional arguments of the engine.

    Blocks: it writes a chat template that is text to a file, which Dynamo requires. Dynamo rejects a path
    that does not exist.
    """
    if shared.template is None:
        return [*shared.engine]
    return [*shared.engine, "--custom-jinja-template", str(_template_file(shared.template))]


def _template_file(text: str) -> Path:
    """Distinguishes a path from a template as vLLM does: a template contains ``{``, ``}`` or a line break."""
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
