"""The operator's metrics of a life: they say what the API server saw."""

import socket
import urllib.request
from collections import Counter

from prometheus_client.parser import text_string_to_metric_families

from tests.documented_metrics import documented

VERBS = {"patch": "apply"}
"""Of the audit log, and of the metric where it differs; a dry run is a `verify` there."""


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Scrape:
    def __init__(self, number):
        with urllib.request.urlopen(f"http://127.0.0.1:{number}/metrics", timeout=5) as answer:
            self.families = list(text_string_to_metric_families(answer.read().decode()))

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


def test_a_scrape_says_what_the_api_server_saw(operate, make_endpoint, api, namespace, until):
    mark, number = api.audit_offset(), port()
    operate(namespace, metrics_port=number).leads()
    endpoint = make_endpoint(namespace).create(replicas=2)
    endpoint.start_all(2)
    endpoint.until("Ready", "True")
    endpoint.patch(spec={"frontend": {"mode": "None"}})
    until(lambda: endpoint.child("Deployment", "-frontend") is None, "something is deleted")
    # The workers know the frontend's mode, so they roll: one new one starts, and one old one serves.
    last = {"observedGeneration": 2, "readyReplicas": 1, "updatedReplicas": 1}
    until(lambda: last.items() <= endpoint.get()["status"].items(), lambda: endpoint.get()["status"])

    def written():
        """Of the audit log: how often, by verb and kind."""
        return Counter(
            (VERBS.get(entry["verb"], entry["verb"]), entry["objectRef"]["resource"])
            for entry in api.requests(mark, namespace=namespace)
            if entry["verb"] in ("create", "update", "patch", "delete")
            and "dryRun" not in entry["requestURI"]
        )

    def counted():
        found = Counter()
        for sample in Scrape(number)("vllmendpoint_operator_api_requests_total"):
            if sample.labels["verb"] in ("apply", "create", "update", "delete"):
                found[sample.labels["verb"], sample.labels["resource"]] += int(sample.value)
        del found["create", "leases"], found["update", "leases"]
        return found

    until(lambda: written() == counted(), lambda: (written(), counted()))
    assert {"deployments", "events", "vllmendpoints"} <= {kind for _, kind in written()}

    scrape, status = Scrape(number), endpoint.get()["status"]
    listed = {family.name for family in scrape.families if family.name.startswith("vllmendpoint_")}
    told = {name.removesuffix("_total") for name in documented()} - {"vllmendpoint_operator_reconcile_errors"}
    assert told <= listed
    where = {"namespace": namespace, "name": endpoint.name}
    for condition in status["conditions"]:
        here = {**where, "condition": condition["type"], "status": condition["status"]}
        assert scrape.one("vllmendpoint_condition", **here) == 1
    assert scrape.one("vllmendpoint_replicas", **where, state="ready") == status["readyReplicas"] == 1
    runs = sum(sample.value for sample in scrape("vllmendpoint_operator_reconcile_total"))
    assert runs > 2
    assert scrape.one("vllmendpoint_operator_reconcile_duration_seconds_count") == runs
    assert scrape.one("vllmendpoint_operator_queue_duration_seconds_count") >= runs
