"""The packages that the variables of the standards package request, and the report of a failure of pip."""

import tomllib
from pathlib import Path

import pytest
from model_hosting_container_standards.common import dependency_manager

from vllmendpoint_api import Problem, Reason
from vllmendpoint_worker.packages.install import packages_folder
from vllmendpoint_worker.packages.pip_output import redact, summarize_failure
from vllmendpoint_worker.packages.requirements import (
    ENV_ARGUMENTS,
    ENV_ENABLED,
    REQUIREMENTS_FILE,
    WHEELS_FOLDER,
    Requirements,
    read_requirements,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def requested(folder: Path, **environ: str) -> Requirements:
    found = read_requirements({"SAGEMAKER_MODEL_PATH": str(folder)} | environ)
    assert isinstance(found, Requirements), found
    return found


def rejected(folder: Path, **environ: str) -> Problem:
    found = read_requirements({"SAGEMAKER_MODEL_PATH": str(folder)} | environ)
    assert isinstance(found, Problem), found
    assert found.reason == Reason.INVALID_ENVIRONMENT
    return found


def test_the_names_are_those_of_the_standards_package() -> None:
    assert dependency_manager.STANDARD_AUTO_INSTALL_REQ == ENV_ENABLED
    assert dependency_manager.STANDARD_PIP_ARGS == ENV_ARGUMENTS
    assert dependency_manager.REQUIREMENTS_FILENAME == REQUIREMENTS_FILE


def test_each_image_has_pip() -> None:
    project = tomllib.loads((Path(__file__).parents[4] / "worker/pyproject.toml").read_text())
    for requirements in (project["project"]["dependencies"], project["dependency-groups"]["gpu"]):
        assert any(each.startswith("pip>=") for each in requirements)


def test_without_a_file_nothing_is_installed(folder: Path) -> None:
    (folder / WHEELS_FOLDER).mkdir()
    assert read_requirements({"SAGEMAKER_MODEL_PATH": str(folder)}) is None
    assert read_requirements({"SAGEMAKER_MODEL_PATH": str(folder / "none")}) is None
    (folder / REQUIREMENTS_FILE).mkdir()
    assert read_requirements({"SAGEMAKER_MODEL_PATH": str(folder)}) is None


def test_the_file_and_the_wheels_next_to_the_script_are_installed(folder: Path) -> None:
    (folder / REQUIREMENTS_FILE).write_text("numpy\n")
    found = requested(folder)
    assert (found.field, found.arguments) == (REQUIREMENTS_FILE, ("-r", str(folder / REQUIREMENTS_FILE)))
    assert found.wheels is None
    (folder / WHEELS_FOLDER).mkdir()
    assert requested(folder).wheels == folder / WHEELS_FOLDER


@pytest.mark.parametrize("value", ["true", "TRUE", "1", "yes", "On", "", " "])
def test_installation_is_enabled_by_default(
    folder: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / REQUIREMENTS_FILE).write_text("numpy\n")
    assert requested(folder, STANDARD_AUTO_INSTALL_REQ=value).field == REQUIREMENTS_FILE
    monkeypatch.setenv(ENV_ENABLED, value.strip() or "true")
    assert dependency_manager.is_auto_install_enabled()


@pytest.mark.parametrize("value", ["false", "False", "0", "no", "OFF"])
def test_installation_can_be_disabled(folder: Path, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / REQUIREMENTS_FILE).write_text("numpy\n")
    environ = {"SAGEMAKER_MODEL_PATH": str(folder), ENV_ENABLED: value, ENV_ARGUMENTS: "numpy"}
    assert read_requirements(environ) is None
    monkeypatch.setenv(ENV_ENABLED, value)
    assert not dependency_manager.is_auto_install_enabled()


def test_an_invalid_switch_is_rejected_and_not_repeated(folder: Path) -> None:
    problem = rejected(folder, STANDARD_AUTO_INSTALL_REQ="s3cret")
    assert problem.message == f"{ENV_ENABLED} is not a boolean. Use true or false."
    assert problem.source == "Environment"


def test_explicit_arguments_replace_the_file(folder: Path) -> None:
    (folder / REQUIREMENTS_FILE).write_text("numpy\n")
    found = requested(folder, STANDARD_PIP_ARGS="-r 'my file.txt' --index-url https://index/simple")
    assert found.arguments == ("-r", "my file.txt", "--index-url", "https://index/simple")
    assert (found.field, found.wheels) == (ENV_ARGUMENTS, None)


def test_an_unclosed_quotation_is_rejected(folder: Path) -> None:
    assert "contains an unclosed quotation mark" in rejected(folder, STANDARD_PIP_ARGS="'numpy").message


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ("--target /x numpy", "--target"), ("--target=/x numpy", "--target"), ("--targ /x", "--target"),
        ("-t /x", "-t"), ("-t/x", "-t"), ("-Ut/x", "-t"), ("-I numpy", "-I"), ("-UI numpy", "-I"),
        ("--prefix /x", "--prefix"), ("--prefi=/x", "--prefix"), ("--root /x", "--root"),
        ("--user numpy", "--user"), ("--python /x", "--python"), ("--force-reinstall", "--force-reinstall"),
        ("--ignore-installed numpy", "--ignore-installed"), ("--dry-run numpy", "--dry-run"),
    ],
)  # fmt: skip
def test_options_that_contradict_those_of_the_worker_are_rejected(
    folder: Path, arguments: str, option: str
) -> None:
    message = rejected(folder, STANDARD_PIP_ARGS=arguments).message
    assert message.startswith(f"{ENV_ARGUMENTS} contains {option}, ")


@pytest.mark.parametrize(
    "arguments",
    ["--pre numpy", "-r tests.txt", "-c I.txt", "-ftorch", "-i https://t/I", "-U numpy", "-e ./tool",
     "--trusted-host t --timeout 5 numpy", "--root-user-action=ignore numpy", "--python-version 3.11 numpy",
     "torch-tools ITerm", "-qU numpy", "--require-hashes -r x.txt"],
)  # fmt: skip
def test_other_options_are_passed_to_pip(folder: Path, arguments: str) -> None:
    assert requested(folder, STANDARD_PIP_ARGS=arguments).field == ENV_ARGUMENTS


def test_a_file_that_is_too_large_is_rejected(folder: Path) -> None:
    (folder / REQUIREMENTS_FILE).write_text("#" * (1024 * 1024 + 1))
    found = read_requirements({"SAGEMAKER_MODEL_PATH": str(folder)})
    assert isinstance(found, Problem)
    assert found.reason == Reason.REQUIREMENTS_NOT_INSTALLED


def test_the_digest_changes_with_every_input_of_pip(folder: Path) -> None:
    (folder / REQUIREMENTS_FILE).write_text("-r sub/more.txt\n./tool\n./local-1.0-py3-none-any.whl\n")
    (folder / "sub").mkdir()
    digests = [requested(folder).digest]
    assert requested(folder).digest == digests[0]

    def changed() -> None:
        digests.append(requested(folder).digest)

    for path, text in (
        ("sub/more.txt", "numpy\n-c pins.txt\n"),
        ("sub/pins.txt", "numpy==1\n"),
        ("sub/pins.txt", "numpy==2\n"),
        ("local-1.0-py3-none-any.whl", "a"),
        ("local-1.0-py3-none-any.whl", "ab"),
        ("tool/pyproject.toml", "a"),
        ("tool/src/tool.py", "a"),
        (f"{WHEELS_FOLDER}/a-1.0-py3-none-any.whl", "a"),
        (f"{WHEELS_FOLDER}/a-1.0-py3-none-any.whl", "ab"),
        (REQUIREMENTS_FILE, "numpy\n"),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
        changed()
    (folder / "model.py").write_text("the script itself does not count\n")
    assert requested(folder).digest == digests[-1]
    digests.append(requested(folder, STANDARD_PIP_ARGS="-r a.txt").digest)
    (folder / "a.txt").write_text("numpy\n")
    digests.append(requested(folder, STANDARD_PIP_ARGS="-r a.txt").digest)
    digests.append(requested(folder, STANDARD_PIP_ARGS="--requirement=a.txt").digest)
    (folder / "a.txt").write_text("numpy==1\n")
    digests.append(requested(folder, STANDARD_PIP_ARGS="--requirement=a.txt").digest)
    digests.append(requested(folder, STANDARD_PIP_ARGS="-ra.txt").digest)
    (folder / "a.txt").write_text("numpy==2\n")
    digests.append(requested(folder, STANDARD_PIP_ARGS="-ra.txt").digest)
    assert len(set(digests)) == len(digests)


def test_files_that_include_each_other_are_read_once(folder: Path) -> None:
    (folder / REQUIREMENTS_FILE).write_text(f"-r {REQUIREMENTS_FILE}\n-r other.txt\n")
    (folder / "other.txt").write_text(f"-r {REQUIREMENTS_FILE}\n")
    assert requested(folder).digest


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"XDG_CACHE_HOME": "/tmp/.cache", "HOME": "/h"}, "/tmp/.cache"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache"),
    ],
)
def test_the_packages_are_on_the_writable_volume_of_the_pod(environ: dict[str, str], expected: str) -> None:
    assert packages_folder(environ) == Path(expected) / "vllmendpoint/packages"


# --- failures of pip ---

MISSING = """Looking in indexes: https://index.example/simple
ERROR: Could not find a version that satisfies the requirement tool>=2 (from versions: 1.0)
ERROR: No matching distribution found for tool>=2
"""
UNREACHABLE = (
    "WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after "
    "connection broken by {}: /simple/tool/\n"
    "ERROR: Could not find a version that satisfies the requirement tool (from versions: none)\n"
    "ERROR: No matching distribution found for tool\n"
)
NO_NAME = (
    "'NameResolutionError(\"HTTPSConnection(host='no.such.host', port=443): Failed to resolve 'no.such.host' "
    "([Errno -2] Name or service not known)\")'"
)
NO_NAME_MESSAGE = (
    "No matching distribution found for tool; the package index cannot be reached: Failed to resolve "
    "'no.such.host' ([Errno -2] Name or service not known)"
)
TIMEOUT = (
    "'ConnectTimeoutError(<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f>, 'Connection to "
    "index.example timed out. (connect timeout=15)')'"
)
CONFLICT = """INFO: pip is looking at multiple versions of tool to determine which version is compatible
ERROR: Cannot install tool==1.0, tool==1.1, tool==1.2, tool==1.3 and tool==1.4 because these package \
versions have conflicting dependencies.

The conflict is caused by:
    tool 1.4 depends on torch<2
    tool 1.3 depends on torch<2
    The user requested (constraint) torch==2.13.0

To fix this you could try to:
1. loosen the range of package versions you've specified

ERROR: ResolutionImpossible: for help visit https://pip.pypa.io/en/latest/topics/dependency-resolution/
"""
CONFLICT_MESSAGE = (
    "Cannot install tool==1.0 and others because these package versions have conflicting dependencies: "
    "tool 1.4 depends on torch<2"
)
OTHER_CONFLICT = CONFLICT.replace(
    "The user requested (constraint) torch==2.13.0", "other 1.0 depends on torch>3"
)
BUILD = """Collecting tool
  error: subprocess-exited-with-error

  x Building wheel for tool (pyproject.toml) did not run successfully.
      error: command 'gcc' failed: No such file or directory
  ERROR: Failed building wheel for tool
ERROR: Failed to build installable wheels for some pyproject.toml based projects (tool)
"""
DENIED = """WARNING: 401 Error, Credentials not correct for https://me:****@index.example/t0ken/simple/tool/
ERROR: Could not find a version that satisfies the requirement tool (from versions: none)
ERROR: No matching distribution found for tool
"""
DENIED_MESSAGE = "the package index answered: 401 Error, Credentials not correct for https://index.example"
FULL = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"


NOT_BUILT = (
    "Failed to build installable wheels for some pyproject.toml based projects (tool); error: command 'gcc' "
    "failed: No such file or directory"
)


@pytest.mark.parametrize(
    ("output", "sentence", "fix"),
    [
        (MISSING, "No matching distribution found for tool>=2", "Correct the name or the version"),
        (UNREACHABLE.format(NO_NAME), NO_NAME_MESSAGE, "Check that the pod reaches the package index"),
        (UNREACHABLE.format(TIMEOUT), "timed out. (connect timeout=15)", "add wheels to requirements/"),
        (CONFLICT, CONFLICT_MESSAGE, "The image contains torch 2.13.0, which the engine needs"),
        (OTHER_CONFLICT, "tool 1.4 depends on torch<2", "Relax one of these versions"),
        (BUILD, NOT_BUILT, "the image has no compiler"),
        (DENIED, DENIED_MESSAGE, "Check the credentials of the package index"),
        (FULL, "No space left on device", "Increase the ephemeral storage of the pod"),
        (
            "/opt/python3: No module named pip\n",
            "the image does not contain pip",
            "Use a worker image that contains pip",
        ),
        ("Usage: pip\n\nno such option: --bogus\n", "no such option: --bogus", "Correct requirements.txt or"),
        ("", "pip has no output", "The worker's log contains pip's output"),
    ],
)
def test_a_failure_contains_the_message_of_pip_and_a_remedy(output: str, sentence: str, fix: str) -> None:
    message, remedy = summarize_failure(output)
    assert sentence in message
    assert fix in remedy
    assert not message.endswith(".")


def test_the_message_of_a_failure_is_bounded() -> None:
    assert len(summarize_failure("ERROR: " + "x" * 10_000)[0]) < 1000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see https://me:pw@host:8/t0ken/simple/?key=1 now", "see https://host:8 now"),
        ("'https://t0ken@host/simple'", "'https://host'"),
        ("git+ssh://git@host/org/repo.git@main", "git+ssh://host"),
        ("proxy me:pw@proxy:3128", "proxy proxy:3128"),
        ("tool @ https://host/a.whl#sha256=1 (from x)", "tool @ https://host (from x)"),
        ("(from https://host/t0ken/a.whl)", "(from https://host)"),
        ("requires tool>=1,<2; see pip", "requires tool>=1,<2; see pip"),
        ("HTTPS://me:pw@HOST/x", "HTTPS://HOST"),
        ("connection broken by 'Error(\"x\")': /t0ken/simple?key=1", "connection broken by 'Error(\"x\")'"),
        (
            "Max retries exceeded with url: /t0ken/simple/ (Caused by x)",
            "Max retries exceeded with url (Caused by x)",
        ),
        ("https://user@mail:pw@host/x", "https://host"),
    ],
)
def test_only_the_host_of_a_url_is_shown(text: str, expected: str) -> None:
    assert redact(text) == expected
