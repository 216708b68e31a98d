"""What pip says of an installation that failed, as one sentence and a fix. Pure.

pip has no exit codes for causes, and ``--report`` tells only what would be installed: its text is read.
"""

import re
from typing import Final

from .requirements import ENV_ARGUMENTS, REQUIREMENTS_FILE, WHEELS_FOLDER

__all__ = ["redact", "summarize_failure"]

_LONGEST: Final = 600

_URL: Final = re.compile(
    r"\b([a-z][a-z0-9+.-]*://)(?:[^\s/'\"@]*@)?([^\s/'\"?#)>,]*)[^\s'\")>,]*", re.IGNORECASE
)
_CREDENTIALS: Final = re.compile(r"[^\s/'\":@]+:[^\s/'\"@]+@")

_PATH: Final = re.compile(r"(connection broken by '.*'|with url): /\S*")

_CONFLICT: Final = re.compile(r"^The conflict is caused by:\n((?:[ \t]+.*\n)+)", re.MULTILINE)
_UNREACHABLE: Final = re.compile(r"connection broken by '(\w+)\((.*)\)'")
_CONNECTION: Final = re.compile(r"<[^>]*>, ?|HTTPS?Connection(?:Pool)?\([^)]*\): ")
_DENIED: Final = re.compile(r"\b(40[137] (?:Client )?Error.*)$", re.MULTILINE)
_CAUSE: Final = re.compile(r"^\s+(?:╰─> )?((?:\w*(?:Error|Exception)|error): .* .*)$", re.MULTILINE)
"""What the package's own build says, indented by pip."""
_BUILD: Final = re.compile(r"Failed to build|Failed building wheel|metadata-generation-failed", re.IGNORECASE)
_IMAGE: Final = re.compile(r"The user requested \(constraint\) (\S+?)==(\S+)")


def redact(text: str) -> str:
    """``text`` with no more of a URL than its scheme and host: the rest may hold a token or a password."""
    return _CREDENTIALS.sub("", _PATH.sub(r"\1", _URL.sub(r"\1\2", text)))


def summarize_failure(output: str) -> tuple[str, str]:
    """pip's own sentence, and what to do. ``output``: standard output and standard error together."""
    output = redact(output)
    errors = [_without_prefix(line) for line in output.splitlines() if line.startswith("ERROR: ")]
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "pip says nothing").strip()
    sentence = errors[0] if errors else last
    if (conflict := _CONFLICT.search(output)) is not None:
        return _conflict(sentence, [line.strip() for line in conflict[1].splitlines()])
    if unreachable := _UNREACHABLE.findall(output):
        fix = (
            "see that the pod reaches the package index (PIP_INDEX_URL, a proxy), or put wheels into "
            f"{WHEELS_FOLDER}/ beside {REQUIREMENTS_FILE}"
        )
        return _truncate(
            f"{_last(errors, sentence)}; the index was not reached: {_connection_error(unreachable[-1])}"
        ), fix
    if denied := _DENIED.findall(output):
        fix = "see the credentials of the package index (PIP_INDEX_URL or --index-url)"
        return _truncate(f"{_last(errors, sentence)}; the index answered: {denied[-1]}"), fix
    if "No space left on device" in output or "Disk quota exceeded" in output:
        return _truncate(sentence), "give the pod more ephemeral storage"
    if "No matching distribution found" in output:
        fix = (
            f"correct the name or the version, or put a wheel of it into {WHEELS_FOLDER}/ beside "
            f"{REQUIREMENTS_FILE}"
        )
        return _truncate(_last(errors, sentence)), fix
    if _BUILD.search(output):
        causes = _CAUSE.findall(output)
        why = f"; {causes[-1]}" if causes else ""
        fix = (
            f"name a version that has a wheel for this Python, or put one into {WHEELS_FOLDER}/ beside "
            f"{REQUIREMENTS_FILE}: the image has no compiler"
        )
        return _truncate(f"{_last(errors, sentence)}{why}"), fix
    if "DO NOT MATCH THE HASHES" in output:
        return _truncate(sentence), "correct the hash, if the package is the one that you mean"
    if "No module named pip" in output:
        return "the image has no pip", "use a worker image that has it, or install the packages in the image"
    return _truncate(
        sentence
    ), f"correct {REQUIREMENTS_FILE} or {ENV_ARGUMENTS}; the worker's log has pip's output"


def _conflict(sentence: str, lines: list[str]) -> tuple[str, str]:
    """The first line says what was asked for; that on a constraint, what the image has."""
    told = list(dict.fromkeys([lines[0], *(line for line in lines if _IMAGE.match(line))]))
    sentence = _shorter_list(sentence)
    image = [f"{found[1]} {found[2]}" for line in told if (found := _IMAGE.match(line))]
    fix = "loosen one of these versions"
    if image:
        told = [line for line in told if not _IMAGE.match(line)]
        fix = (
            f"the image has {' and '.join(image)}, which stays, because the engine needs it: allow that "
            "version, or use a worker image that has another"
        )
    return _truncate(f"{sentence.rstrip('.')}: {'; '.join(told)}"), fix


def _shorter_list(sentence: str) -> str:
    """pip names every version of a package that it has tried."""
    found = re.match(r"Cannot install (.*) because (.*)", sentence)
    if found is None or found[1].count(", ") < 3:
        return sentence
    first = found[1].split(", ")[0]
    return f"Cannot install {first} and others because {found[2]}"


def _connection_error(broken: tuple[str, str]) -> str:
    """``Failed to resolve 'host' ([Errno -2] Name or service not known)``, or the name of the error."""
    name, arguments = broken
    return _CONNECTION.sub("", arguments).strip("\"' ") or name


def _without_prefix(line: str) -> str:
    return line.removeprefix("ERROR: ").strip()


def _last(errors: list[str], otherwise: str) -> str:
    return errors[-1] if errors else otherwise


def _truncate(sentence: str) -> str:
    sentence = " ".join(sentence.split()).rstrip(".")
    return sentence if len(sentence) <= _LONGEST else f"{sentence[:_LONGEST]}..."
