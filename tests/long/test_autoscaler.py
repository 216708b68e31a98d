"""The autoscaler of docs/tasks/scale.md, with the real controller, which has a period of 15 seconds."""

import re

import pytest
import yaml

from tests.integration.api_server import ROOT

pytestmark = pytest.mark.long


def test_the_documented_autoscaler_scales_the_endpoint(operate, make_endpoint, namespace, api, until):
    """Without metrics: an autoscaler applies its bounds even if it has no metrics."""
    operate(namespace).until_leading()
    endpoint = make_endpoint(namespace).create()
    until(endpoint.pods, "its pod")
    document = (ROOT / "docs/tasks/scale.md").read_text()
    (text,) = re.findall(r"```yaml\n(apiVersion: autoscaling.*?)```", document, re.DOTALL)
    body = yaml.safe_load(text)
    body["metadata"]["name"] = body["spec"]["scaleTargetRef"]["name"] = endpoint.name
    behavior = {"scaleDown": {"stabilizationWindowSeconds": 0}}
    body["spec"] |= {"minReplicas": 3, "maxReplicas": 4, "behavior": behavior}
    path = f"/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers"
    api.call("POST", path, body)
    until(lambda: len(endpoint.pods()) == 3, "three pods, the minimum of the autoscaler", 90)
    assert endpoint.get()["spec"]["replicas"] == 3

    def active():
        status = api.call("GET", f"{path}/{endpoint.name}").get("status", {})
        return next((c for c in status.get("conditions", []) if c["type"] == "ScalingActive"), {})

    # Within its bounds it requests the metrics of the pods that status.selector selects.
    until(lambda: active().get("reason") == "FailedGetPodsMetric", active, 60)
    api.call("PATCH", f"{path}/{endpoint.name}", {"spec": {"minReplicas": 1, "maxReplicas": 2}}, as_="merge")
    until(lambda: len(endpoint.pods()) == 2, "two pods, the maximum of the autoscaler", 90)
