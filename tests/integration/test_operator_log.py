"""The operator's log, with DEBUG on: whom each line is about, and nothing of what users put in."""

import json

PAYLOAD, SECRET, SCRIPT = "payload-9f3a", "value-77c1", "script-4e0d"
CONFIG, EXPECTED, LIE = "config-b21e", "expect-60aa", "lie-5d7c"


def test_lines_name_their_endpoint_and_hold_no_content(operate, make_endpoint, api, namespace, until):
    operator = operate(namespace, log_level="DEBUG").leads()
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
    worker.raw = f'{{"verdict": "{LIE}"}}\n'.encode()
    worker.send_report()
    bad = {"spec": {"containers": [{"name": "main", "imagePullPolicy": "Sometimes"}]}}
    endpoint.patch(spec={"worker": {"podTemplate": bad}})
    endpoint.until("Accepted", "False")
    api.delete("VLLMEndpoint", namespace, endpoint.name)
    until(lambda: not endpoint.pods(), "the end", 45)
    text = operator.text()
    for content in (PAYLOAD, SECRET, SCRIPT, CONFIG, EXPECTED, LIE):
        assert content not in text
    lines = [json.loads(line) for line in text.splitlines()]
    failing = [line for line in lines if line.get("reason") == "ProbeFailed"]
    assert {line["endpoint"] for line in failing} == {f"{namespace}/{endpoint.name}"}
    assert all(line["reconcile"] for line in failing)
    runs = {line["reconcile"] for line in lines if "reconcile" in line}
    assert len(runs) > 1, "each reconcile has an id of its own"
