"""Summarizes pip's output of a failed installation as a fault and a fix. Pure.

pip has no exit codes for causes, and ``--report`` lists only what would be installed. Therefore this module
parses pip's text.
"""

import re
from typing import Final

from .requirements import ENV_ARGUMENTS, REQUIREMENTS_FILE, WHEELS_FOLDER

__all__ = ["redact", "summarize_failure"]

_MAX_CHARACTERS: Final = 600

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
"""The output of the package's build, which pip indents."""
_BUILD: Final = re.compile(r"Failed to build|Failed building wheel|metadata-generation-failed", re.IGNORECASE)
_IMAGE: Final = re.compile(r"The user requested \(constraint\) (\S+?)==(\S+)")


_WHEELS: Final = f"{WHEELS_FOLDER}/ next to {REQUIREMENTS_FILE}"
_INDEX_FIX: Final = (
    f"Check that the pod reaches the package index (PIP_INDEX_URL, a proxy), or add wheels to {_WHEELS}."
)
_BUILD_FIX: Final = (
    f"Use a version that has a wheel for this Python, or add a wheel to {_WHEELS}, because the image has no "
    "compiler."
)


def redact(text: str) -> str:
    """``text`` with URLs cut to scheme and host, because the rest may contain a token or a password."""
    return _CREDENTIALS.sub("", _PATH.sub(r"\1", _URL.sub(r"\1\2", text)))


def summarize_failure(output: str) -> tuple[str, str]:
    """pip's own message, and the fix. ``output``: standard output and standard error together."""
    output = redact(output)
    errors = [_without_prefix(line) for line in output.splitlines() if line.startswith("ERROR: ")]
    last_line = next((line for line in reversed(output.splitlines()) if line.strip()), "pip has no output")
    first = errors[0] if errors else last_line.strip()
    last = errors[-1] if errors else first
    if (conflict := _CONFLICT.search(output)) is not None:
        return _conflict(first, [line.strip() for line in conflict[1].splitlines()])
    if unreachable := _UNREACHABLE.findall(output):
        cause = _connection_error(unreachable[-1])
        return _truncate(f"{last}; the package index cannot be reached: {cause}"), _INDEX_FIX
    if denied := _DENIED.findall(output):
        fix = "Check the credentials of the package index (PIP_INDEX_URL or --index-url)."
        return _truncate(f"{last}; the package index answered: {denied[-1]}"), fix
    if "No space left on device" in output or "Disk quota exceeded" in output:
        return _truncate(first), "Increase the ephemeral storage of the pod."
    if "No matching distribution found" in output:
        return _truncate(last), f"Correct the name or the version, or add a wheel to {_WHEELS}."
    if _BUILD.search(output):
        causes = _CAUSE.findall(output)
        cause = f"; {causes[-1]}" if causes else ""
        return _truncate(f"{last}{cause}"), _BUILD_FIX
    if "DO NOT MATCH THE HASHES" in output:
        return _truncate(first), "Verify the package, and then correct the hash."
    if "No module named pip" in output:
        fix = "Use a worker image that contains pip, or install the packages in the image."
        return "the image does not contain pip", fix
    return _truncate(
        first
    ), f"Correct {REQUIREMENTS_FILE} or {ENV_ARGUMENTS}. The worker's log contains pip's output."


def _conflict(sentence: str, lines: list[str]) -> tuple[str, str]:
    """``lines``: the first names the requested package, those on a constraint the packages of the image."""
    requirements = [lines[0], *(line for line in lines if _IMAGE.match(line))]
    requirements = list(dict.fromkeys(requirements))
    image = [f"{found[1]} {found[2]}" for line in requirements if (found := _IMAGE.match(line))]
    fix = "Relax one of these versions."
    if image:
        requirements = [line for line in requirements if not _IMAGE.match(line)]
        fix = (
            f"The image contains {' and '.join(image)}, which the engine needs. Allow that version, or use a "
            "worker image with another version."
        )
    return _truncate(f"{_shorter_list(sentence).rstrip('.')}: {'; '.join(requirements)}"), fix


def _shorter_list(sentence: str) -> str:
    """pip lists every version of a package that it tried."""
    found = re.match(r"Cannot install (.*) because (.*)", sentence)
    if found is None or found[1].count(", ") < 3:
        return sentence
    first = found[1].split(", ")[0]
    return f"Cannot install {first} and others because {found[2]}"


def _connection_error(broken: tuple[str, str]) -> str:
    """For example ``Failed to resolve 'host' ([Errno -2] Name or service not known)``, or the type."""
    name, arguments = broken
    return _CONNECTION.sub("", arguments).strip("\"' ") or name


def _without_prefix(line: str) -> str:
    return line.removeprefix("ERROR: ").strip()


def _truncate(sentence: str) -> str:
    sentence = " ".join(sentence.split()).rstrip(".")
    return sentence if len(sentence) <= _MAX_CHARACTERS else f"{sentence[:_MAX_CHARACTERS]}..."
