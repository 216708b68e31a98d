"""The operator's metrics for the lifecycle of an endpoint, compared with the audit log of the API server."""

from collections import Counter

from prometheus_client.parser import text_string_to_metric_families

from tests.documented_metrics import documented
from tests.free_port import free_port
from tests.integration.http_get import metrics_text

VERBS = {"patch": "apply"}
"""Verbs of the audit log that the metric names differently. The metric counts a dry run as `verify`."""


class Scrape:
    def __init__(self, port):
        self.families = list(text_string_to_metric_families(metrics_text(port)))

    def __call__(self, series, **labels):
        return [
            sample
            for family in self.families
            for sample in family.samples
            if sample.name == series and labels.items() <= sample.labels.items()
        ]

    def one(self, series, **labels):
        (sample,) = self(series, **labels)
        return sample.value


def test_the_metrics_match_the_audit_log_and_the_status(operate, make_endpoint, api, namespace, until):
    offset, port = api.audit_offset(), free_port()
    operate(namespace, metrics_port=port).until_leading()
    endpoint = make_endpoint(namespace).create(replicas=2)
    endpoint.start_all(2)
    endpoint.until("Ready", "True")
    endpoint.patch(spec={"frontend": {"mode": "None"}})
    until(lambda: endpoint.child("Deployment", "-frontend") is None, "the frontend is deleted")
    # The workers' template contains the mode of the frontend, so they roll: one starts, an old one serves.
    last = {"observedGeneration": 2, "readyReplicas": 1, "updatedReplicas": 1}
    until(lambda: last.items() <= endpoint.get()["status"].items(), lambda: endpoint.get()["status"])

    def written():
        """Number of writes in the audit log by verb and kind."""
        return Counter(
            (VERBS.get(entry["verb"], entry["verb"]), entry["objectRef"]["resource"])
            for entry in api.requests(offset, namespace=namespace)
            if entry["verb"] in ("create", "update", "patch", "delete")
            and "dryRun" not in entry["requestURI"]
        )

    def counted():
        found = Counter()
        for sample in Scrape(port)("vllmendpoint_operator_api_requests_total"):
            if sample.labels["verb"] in ("apply", "create", "update", "delete"):
                found[sample.labels["verb"], sample.labels["resource"]] += int(sample.value)
        del found["create", "leases"], found["update", "leases"]
        return found

    until(lambda: written() == counted(), lambda: (written(), counted()))
    assert {"deployments", "events", "vllmendpoints"} <= {kind for _, kind in written()}

    scrape, status = Scrape(port), endpoint.get()["status"]
    listed = {family.name for family in scrape.families if family.name.startswith("vllmendpoint_")}
    expected = {name.removesuffix("_total") for name in documented()} - {
        "vllmendpoint_operator_reconcile_errors"
    }
    assert expected <= listed
    labels = {"namespace": namespace, "name": endpoint.name}
    for condition in status["conditions"]:
        current = {**labels, "condition": condition["type"], "status": condition["status"]}
        assert scrape.one("vllmendpoint_condition", **current) == 1
    assert scrape.one("vllmendpoint_replicas", **labels, state="ready") == status["readyReplicas"] == 1
    runs = sum(sample.value for sample in scrape("vllmendpoint_operator_reconcile_total"))
    assert runs > 2
    assert scrape.one("vllmendpoint_operator_reconcile_duration_seconds_count") == runs
    assert scrape.one("vllmendpoint_operator_queue_duration_seconds_count") >= runs
