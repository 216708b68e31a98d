"""The operator's log at DEBUG: lines name their endpoint, and contain no content of users."""

import json

PAYLOAD, SECRET, SCRIPT = "payload-9f3a", "value-77c1", "script-4e0d"
CONFIG, EXPECTED, VERDICT = "config-b21e", "expect-60aa", "verdict-5d7c"


def test_log_lines_name_their_endpoint_and_contain_no_content_of_users(
    operate, make_endpoint, api, namespace, until
):
    operator = operate(namespace, log_level="DEBUG").until_leading()
    endpoint = make_endpoint(namespace).create(
        worker={"env": [{"name": "TOKEN", "value": SECRET}]},
        engine={"config": {"inline": {"chat-template": CONFIG}}},
        healthCheck={"payload": {"prompt": PAYLOAD}, "expect": {"regex": EXPECTED}},
        handlers={"script": {"inline": f"# {SCRIPT}\n"}},
    )
    (worker,) = endpoint.start_all()
    endpoint.until("Ready", "True")
    worker.send_report("Failing")
    endpoint.until("Generating", "False", "ProbeFailed")
    worker.raw = f'{{"verdict": "{VERDICT}"}}\n'.encode()
    worker.send_report()
    invalid = {"spec": {"containers": [{"name": "main", "imagePullPolicy": "Sometimes"}]}}
    endpoint.patch(spec={"worker": {"podTemplate": invalid}})
    endpoint.until("Accepted", "False")
    api.delete("VLLMEndpoint", namespace, endpoint.name)
    until(lambda: not endpoint.pods(), "the pods are deleted", 45)
    text = operator.text()
    for content in (PAYLOAD, SECRET, SCRIPT, CONFIG, EXPECTED, VERDICT):
        assert content not in text
    lines = [json.loads(line) for line in text.splitlines()]
    failing = [line for line in lines if line.get("reason") == "ProbeFailed"]
    assert {line["endpoint"] for line in failing} == {f"{namespace}/{endpoint.name}"}
    assert all(line["reconcile"] for line in failing)
    runs = {line["reconcile"] for line in lines if "reconcile" in line}
    assert len(runs) > 1, "each reconcile has a unique ID"
