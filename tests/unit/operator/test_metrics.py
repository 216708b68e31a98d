"""Metrics of endpoints and of the operator."""

from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families

from tests.documented_metrics import documented
from vllmendpoint_operator.http_server import serve
from vllmendpoint_operator.metrics import Metrics


def exposed(metrics: Metrics) -> list[str]:
    return b"".join(metrics.exposition()).decode().splitlines()


def test_an_endpoint_is_exposed_until_it_is_removed(make_endpoint, make_status, make_worker):
    metrics = Metrics()
    endpoint = make_endpoint(replicas=2)
    found = make_status(
        endpoint, make_worker("w-1", settings=endpoint), make_worker("w-2", "Stalled", settings=endpoint)
    )
    metrics.set_endpoint(endpoint.key, 2, found)
    metrics.set_endpoint(("team-b", "other"), 0, found)
    lines = exposed(metrics)
    where = 'name="smollm",namespace="team-a"'
    for state, count in (("desired", 2), ("current", 2), ("ready", 1), ("generating", 1)):
        assert f'vllmendpoint_replicas{{{where},state="{state}"}} {count}.0' in lines
    for status, value in (("False", 1), ("True", 0), ("Unknown", 0)):
        line = f'vllmendpoint_condition{{condition="Generating",{where},status="{status}"}} {value}.0'
        assert line in lines
    metrics.set_endpoint(endpoint.key, 1, make_status(endpoint, make_worker("w-1", settings=endpoint)))
    assert f'vllmendpoint_replicas{{{where},state="desired"}} 1.0' in exposed(metrics)
    metrics.remove_endpoint(endpoint.key)
    metrics.remove_endpoint(endpoint.key)
    assert not [line for line in exposed(metrics) if where in line]
    assert [line for line in exposed(metrics) if 'name="other",namespace="team-b"' in line]


def test_many_endpoints_are_exposed_in_small_chunks(make_endpoint, make_status, make_worker):
    """A scrape of 1,000 endpoints as one text would take megabytes."""
    metrics = Metrics()
    endpoint = make_endpoint()
    found = make_status(endpoint, make_worker("w-1", settings=endpoint))
    for number in range(300):
        metrics.set_endpoint(("team-a", f"e-{number}"), 1, found)
    parts = list(metrics.exposition())
    assert sum(map(len, parts)) > 500_000
    assert max(map(len, parts)) < 10_000


def test_requests_are_counted_by_verb_kind_and_status():
    metrics = Metrics()
    for code in (200, 200, 409):
        metrics.count_request("apply", "deployments", code)
    name = 'vllmendpoint_operator_api_requests_total{code="%d",resource="deployments",verb="apply"} %d.0'
    assert {name % (200, 2), name % (409, 1)} <= set(exposed(metrics))


def test_prefill_replicas_are_exposed_apart(make_endpoint, make_status, make_worker, make_prefill):
    metrics = Metrics()
    endpoint = make_endpoint(prefill={})
    pods = [make_worker(settings=endpoint), make_prefill(settings=endpoint)]
    pods.append(make_prefill("p-2", "Stalled", settings=endpoint))
    metrics.set_endpoint(endpoint.key, 1, make_status(endpoint, *pods), desired_prefill=3)
    metrics.set_endpoint(("team-b", "other"), 1, make_status(make_endpoint()))
    where = 'vllmendpoint_prefill_replicas{name="smollm",namespace="team-a",state='
    found = [line for line in exposed(metrics) if line.startswith("vllmendpoint_prefill_replicas{")]
    assert found == [
        f'{where}"desired"}} 3.0',
        f'{where}"current"}} 2.0',
        f'{where}"ready"}} 1.0',
        f'{where}"generating"}} 1.0',
    ]
    assert 'vllmendpoint_replicas{name="smollm",namespace="team-a",state="current"} 1.0' in exposed(metrics)


async def test_the_docs_list_exactly_the_exposed_metrics(make_endpoint, make_status, make_worker):
    metrics = Metrics()
    endpoint = make_endpoint(prefill={})
    metrics.set_endpoint(endpoint.key, 1, make_status(endpoint, make_worker("w-1", settings=endpoint)))
    metrics.count_request("apply", "deployments", 200)
    metrics.reconciles.labels("success").inc()
    metrics.namespaces.labels("team-a").set(1)
    async with (
        serve(metrics, lambda: True, address="127.0.0.1", metrics_port=0, health_port=0) as (port, _),
        ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/metrics") as response,
    ):
        text = await response.text()
    scraped = {}
    for family in text_string_to_metric_families(text):
        # prometheus_client adds a _created series to each of its metrics.
        if family.name.startswith("vllmendpoint_") and not family.name.endswith("_created"):
            name = family.samples[0].name if family.type == "counter" else family.name
            labels = set.union(*(set(sample.labels) for sample in family.samples)) - {"le"}
            scraped[name] = (family.type, labels)
    assert scraped == documented()
