"""The alerts of the chart use only series and labels that the operator exports."""

import re

from tests.documented_metrics import documented
from tests.unit.rendered_chart import one, template
from vllmendpoint_api import Condition, ConditionStatus

VALUES = {
    "condition": [condition.value for condition in Condition],
    "status": [status.value for status in ConditionStatus],
    "state": ["desired", "current", "ready", "generating", "routed"],
    "result": ["success", "error"],
}
"""Label -> its possible values."""


def series() -> dict[str, set[str]]:
    """Series -> its labels, from the documented metrics, which a test compares with the exposed ones."""
    found = {}
    for name, (kind, labels) in documented().items():
        for suffix in ("_bucket", "_count", "_sum") if kind == "histogram" else ("",):
            found[name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    return found


def test_alerts_use_only_series_and_labels_that_exist() -> None:
    groups = one(template({"prometheusRule": {"enabled": True}}), "PrometheusRule")["spec"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) >= 5
    known = series()
    for rule in rules:
        alert, expression = rule["alert"], rule["expr"]
        used = re.findall(r"(vllmendpoint_\w+)(?:\{([^}]*)\})?", expression)
        assert used, alert
        has = {"namespace"}  # Prometheus adds it to the operator's own series
        for name, selector in used:
            assert name in known, alert
            has |= known[name]
            for label, value in re.findall(r'(\w+)="([^"]*)"', selector):
                assert label in has, (alert, label)
                assert value in VALUES.get(label, [value]), (alert, label, value)
        for labels in re.findall(r"by \(([^)]*)\)", expression):
            assert set(labels.split(", ")) <= has, (alert, labels)
        for label in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
            assert label in has, (alert, label)
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description"}
