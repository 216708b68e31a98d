"""Arguments are split between engine and HTTP server, and the environment is made safe for upstream."""

import pytest

from vllmendpoint_worker.options.arguments import clear_environment, config_to_arguments, split_by_server

ENGINE = {"--model", "--seed", "--shared"}
FRONTEND = {"--chat-template", "--api-key", "--shared", "--default-chat-template-kwargs"}


@pytest.mark.parametrize(
    ("argv", "engine", "frontend"),
    [
        ([], [], []),
        (["--model", "m", "--api-key", "a", "b"], ["--model", "m"], ["--api-key", "a", "b"]),
        (["--api_key=a", "--seed", "-1"], ["--seed", "-1"], ["--api_key=a"]),
        (["--shared", "x"], ["--shared", "x"], ["--shared", "x"]),
        (["--chat-template", "t", "-tp", "2"], ["-tp", "2"], ["--chat-template", "t"]),
        (["--nonsense", "1"], ["--nonsense", "1"], []),
        (["--default-chat-template-kwargs.x", "1"], [], ["--default-chat-template-kwargs.x", "1"]),
    ],
)
def test_arguments_are_split_by_server(argv: list[str], engine: list[str], frontend: list[str]) -> None:
    assert split_by_server(argv, ENGINE, FRONTEND) == (engine, frontend)


def test_config_values_become_arguments() -> None:
    config = {"max_model_len": 64, "on": True, "off": False, "both": False, "many": ["a", 1], "empty": []}
    config |= {"nested": {"a": 1}, "nothing": None}
    assert config_to_arguments(config, {"--no-both"}) == [
        *("--max-model-len", "64", "--on", "--no-both", "--many", "a", "1", "--nested", '{"a": 1}'),
    ]


@pytest.mark.parametrize("crashing", ["1", "false", ""])
def test_the_environment_is_cleared_of_variables_that_crash_upstream(crashing: str) -> None:
    environ = {"DYN_HEALTH_CHECK_ENABLED": crashing, "GUIDE": "x", "VLLM_PLUGINS": "a,ours", "KEPT": "y"}
    environ |= {"DYN_CANARY_WAIT_TIME": "0", "DYN_HEALTH_CHECK_REQUEST_TIMEOUT": "0.5"}
    clear_environment(environ, ["GUIDE"], ["ours", "more"])
    assert environ["DYN_HEALTH_CHECK_ENABLED"] == "true"
    assert int(environ["DYN_CANARY_WAIT_TIME"]) >= 1
    assert int(environ["DYN_HEALTH_CHECK_REQUEST_TIMEOUT"]) >= 1
    assert "GUIDE" not in environ
    assert (environ["VLLM_PLUGINS"], environ["KEPT"]) == ("a,ours,more", "y")
    unset: dict[str, str] = {}
    clear_environment(unset, [], ["ours"])
    assert "VLLM_PLUGINS" not in unset
