"""Lines that Dynamo would log every second are filtered."""

import pytest

from vllmendpoint_worker.process.dynamo_log import FRONTEND_FILTER, log_filter

CANARY = "dynamo_runtime::health_check=error"


@pytest.mark.parametrize(
    ("given", "filters"),
    [
        (None, f"info,{CANARY}"),
        ("", f"info,{CANARY}"),
        (" , ", f"info,{CANARY}"),
        ("info", f"info,{CANARY}"),
        ("WARN", f"WARN,{CANARY}"),
        ("info,dynamo_llm=debug", f"info,dynamo_llm=debug,{CANARY}"),
        ("dynamo_llm=debug", f"dynamo_llm=debug,{CANARY}"),
        ("debug", None),
        ("trace,hyper=info", None),
        ("error", None),
        ("off", None),
        ("info,dynamo_runtime::health_check=trace", None),
        ("info, dynamo_runtime::health_check", None),
    ],
)
def test_the_canarys_warnings_are_filtered_unless_the_user_requests_them(
    given: str | None, filters: str | None
) -> None:
    environ = {} if given is None else {"DYN_LOG": given}
    assert log_filter(environ).get("DYN_LOG") == filters


def test_a_frontend_does_not_log_each_response() -> None:
    quiet = "dynamo_llm::http::service::service_v2=warn"
    assert log_filter({}, FRONTEND_FILTER) == {"DYN_LOG": f"info,{quiet}"}
    assert log_filter({"DYN_LOG": "dynamo_llm::http::service::service_v2=info"}, FRONTEND_FILTER) == {}


def test_a_configuration_file_for_the_log_is_not_changed() -> None:
    assert log_filter({"DYN_LOGGING_CONFIG_PATH": "/etc/dynamo/logging.toml"}) == {}
