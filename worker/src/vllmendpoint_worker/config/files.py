"""Reads and parses small files. Errors give a position, never the content, which may be confidential."""

import errno
import json
from pathlib import Path
from typing import Any, Final

import yaml

__all__ = ["MAX_FILE_BYTES", "parse_json", "parse_yaml_mapping", "read_error", "read_file"]

MAX_FILE_BYTES: Final = 1024 * 1024


def read_file(path: Path) -> bytes:
    """Raises OSError, also for a file of more than ``MAX_FILE_BYTES``."""
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, "too large")
    return data


def read_error(error: OSError | ValueError) -> str:
    """Why a file cannot be read, without its name, which may come from a confidential value."""
    match error:
        case FileNotFoundError():
            return "does not exist"
        case PermissionError():
            return "cannot be read, because the permission is denied"
        case IsADirectoryError():
            return "is a directory"
        case OSError(errno=errno.EFBIG):
            return f"is larger than {MAX_FILE_BYTES} bytes"
        case _:
            return "cannot be read"


def parse_json(data: bytes) -> tuple[Any, str]:
    """The value and "", or None and the fault."""
    try:
        value = json.loads(data.decode())
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return None, "contains text that UTF-8 cannot encode (half of a surrogate pair)"
    except UnicodeDecodeError:
        return None, "is not UTF-8 text"
    except json.JSONDecodeError as error:
        return None, f"is not valid JSON (line {error.lineno}, column {error.colno})"
    except ValueError:
        return None, "contains a number with too many digits"
    except RecursionError:
        return None, "is nested too deeply"
    return value, ""


def parse_yaml_mapping(data: bytes) -> tuple[dict[str, Any], tuple[str, str] | None]:
    """The mapping and None, or the fault and the fix."""
    try:
        value = yaml.safe_load(data.decode())
    except UnicodeDecodeError:
        return {}, ("is not UTF-8 text", "Save it as UTF-8.")
    # PyYAML raises these for some values:
    except (ValueError, ArithmeticError, LookupError, AttributeError, RecursionError):
        fault = "contains a value that YAML cannot read, or is nested too deeply"
        return {}, (fault, "Quote strings that look like a date or a number.")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        position = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
        return {}, (f"is not valid YAML{position}", "Correct the syntax.")
    if value is None:
        return {}, None
    if not isinstance(value, dict) or any(not isinstance(key, str) for key in value):
        return {}, ("is not a mapping of names to values", "Use lines such as name: value.")
    return value, None
