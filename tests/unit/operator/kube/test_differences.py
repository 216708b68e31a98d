"""Differences between a desired and a live object."""

import pytest

from vllmendpoint_operator.kube.differences import differences, differs


@pytest.mark.parametrize(
    ("desired", "live", "different"),
    [
        ({"a": 1}, {"a": 1, "default": True}, False),
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, False),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, True),
        ({"a": 1}, {}, True),
        # zero values, which the API server omits
        ({"a": ""}, {}, False),
        ({"a": 0}, {}, False),
        ({"a": False}, {}, False),
        ({"a": {}}, {}, False),
        ({"a": []}, {}, False),
        ({"a": None}, {}, False),
        ({"a": {"b": {}}}, {"a": {}}, False),
        ({"a": 0}, {"a": 1}, True),
        ({"a": False}, {"a": True}, True),
        # atomic lists
        ({"l": [1, 2]}, {"l": [1, 2]}, False),
        ({"l": [1, 2]}, {"l": [2, 1]}, True),
        ({"l": [1]}, {"l": [1, 2]}, True),
        ({"l": [{"a": 1}]}, {"l": [{"a": 1, "protocol": "TCP"}]}, False),
        ({"subjects": [{"name": "a"}]}, {"subjects": [{"name": "a"}, {"name": "intruder"}]}, True),
        # keyed lists: an apply keeps the items of other managers
        ({"env": [{"name": "A"}]}, {"env": [{"name": "B"}, {"name": "A"}]}, False),
        ({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "A", "value": "2"}]}, True),
        ({"env": [{"name": "A"}]}, {"env": [{"name": "B"}]}, True),
        (
            {"ports": [{"containerPort": 1, "name": "a"}]},
            {"ports": [{"containerPort": 1, "name": "b", "protocol": "TCP"}]},
            True,
        ),
        (
            {"volumeMounts": [{"mountPath": "/a", "name": "v"}]},
            {"volumeMounts": [{"mountPath": "/b", "name": "w"}, {"mountPath": "/a", "name": "v"}]},
            False,
        ),
        (
            {"ports": [{"port": 1, "protocol": "TCP"}]},
            {"ports": [{"port": 2, "protocol": "TCP"}, {"port": 1, "protocol": "TCP", "nodePort": 3}]},
            False,
        ),
        ({"ports": [{"containerPort": 1}]}, {"ports": [{"containerPort": 1, "protocol": "TCP"}]}, False),
        ({"ports": [{"port": 1}]}, {"ports": [{"port": 1, "protocol": "UDP"}]}, True),
        ({"ownerReferences": [{"uid": "a"}]}, {"ownerReferences": [{"uid": "b"}, {"uid": "a"}]}, False),
        ({"ownerReferences": [{"uid": "a"}]}, {"ownerReferences": [{"uid": "b"}]}, True),
        # atomic maps: an additional label selects other pods
        ({"selector": {"a": "1"}}, {"selector": {"a": "1"}}, False),
        ({"selector": {"a": "1"}}, {"selector": {"a": "1", "b": "2"}}, True),
        ({"podSelector": {"matchLabels": {"a": "1"}}}, {"podSelector": {"matchLabels": {"a": "1"}}}, False),
        (
            {"podSelector": {"matchLabels": {"a": "1"}}},
            {"podSelector": {"matchLabels": {"a": "1", "b": "2"}}},
            True,
        ),
        ({"nodeSelector": {"a": "1"}}, {"nodeSelector": {"a": "1", "b": "2"}}, True),
        ({"labelSelector": {"matchLabels": {}}}, {"labelSelector": {}}, False),
        ({"nodeSelector": {}}, {}, False),
        # an empty selector selects everything, and an absent one nothing
        (
            {"ingress": [{"from": [{"podSelector": {"a": "1"}}]}]},
            {"ingress": [{"from": [{"podSelector": {"a": "1"}, "namespaceSelector": {}}]}]},
            True,
        ),
        ({"labelSelector": {}}, {}, True),
        ({"labelSelector": None}, {}, False),
        ({"ingress": [{"ports": [{"port": 1}]}]}, {"ingress": [{"ports": [{"port": 1}]}]}, False),
        (
            {"ingress": [{"ports": [{"port": 1}]}]},
            {"ingress": [{"ports": [{"port": 1}, {"port": 2}]}]},
            True,
        ),
        ({"ingress": [{"from": [{"podSelector": {}}]}]}, {"ingress": [{}]}, True),
        # quantities
        ({"cpu": "1000m"}, {"cpu": "1"}, False),
        ({"cpu": "0.5"}, {"cpu": "500m"}, False),
        ({"memory": "1024Mi"}, {"memory": "1Gi"}, False),
        ({"memory": "1.5Gi"}, {"memory": "1536Mi"}, False),
        ({"memory": "1E3"}, {"memory": "1e3"}, False),
        ({"memory": "2e3"}, {"memory": "2k"}, False),
        # as the API server stores them: rounded up, and in resource lists to a thousandth
        ({"requests": {"cpu": "1.5m"}}, {"requests": {"cpu": "2m"}}, False),
        ({"requests": {"cpu": 0.0015}}, {"requests": {"cpu": "2m"}}, False),
        ({"limits": {"memory": "0.0001"}}, {"limits": {"memory": "1m"}}, False),
        ({"overhead": {"cpu": "1n"}}, {"overhead": {"cpu": "1m"}}, False),
        ({"requests": {"storage": "1.0005"}}, {"requests": {"storage": "1001m"}}, False),
        ({"requests": {"cpu": "1.5m"}}, {"requests": {"cpu": "1m"}}, True),
        ({"requests": {"cpu": "1.5m"}}, {"requests": {"cpu": "3m"}}, True),
        ({"requests": {"cpu": "1m"}}, {"requests": {}}, True),
        ({"requests": {"cpu": None}}, {"requests": {}}, False),
        ({"requests": {"a": "1"}}, {"requests": {"a": "1", "b": "2"}}, False),
        ({"sizeLimit": "1.5m"}, {"sizeLimit": "2m"}, True),
        ({"sizeLimit": "0.0000000001"}, {"sizeLimit": "1n"}, False),
        ({"sizeLimit": 0.5}, {"sizeLimit": "500m"}, False),
        ({"sizeLimit": "16Ei"}, {"sizeLimit": "9223372036854775807"}, False),
        ({"sizeLimit": "10E"}, {"sizeLimit": "9223372036854775807"}, False),
        ({"sizeLimit": " 1Gi "}, {"sizeLimit": "1Gi"}, False),
        ({"cpu": "1"}, {"cpu": "2"}, True),
        ({"cpu": "1"}, {"cpu": "1Gi"}, True),
        ({"count": 1}, {"count": "1"}, False),
        ({"image": "a:1"}, {"image": "a:2"}, True),
        ({"text": "..."}, {"text": "...."}, True),
        ({"digest": "1e9999999999999999999999"}, {"digest": "29384756e4738291098765432"}, True),
        ({"digest": "0e17"}, {"digest": "1e999"}, True),
    ],
)
def test_differs_follows_the_rules_of_server_side_apply(desired, live, different):
    assert differs(desired, live) is different


def test_differences_name_the_path_and_the_live_value():
    desired = {
        "spec": {
            "replicas": 1,
            "containers": [{"name": "main", "image": "a"}, {"name": "s", "image": "b"}],
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": "x"}],
            "args": [{"a": 1}, {"a": 2}],
            "selector": {"a": "1"},
            "gone": 1,
        }
    }
    live = {
        "spec": {
            "replicas": 3,
            "containers": [{"name": "main", "image": "c"}],
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": "y"}],
            "args": [{"a": 1}, {"a": 3}],
            "selector": {"a": "1", "b": "2"},
        }
    }
    assert dict(differences(desired, live)) == {
        ("spec", "replicas"): 3,
        ("spec", "containers", "[main]", "image"): "c",
        ("spec", "containers", "[s]"): None,
        ("spec", "ports", "[80/TCP]", "targetPort"): "y",
        ("spec", "args", "[1]", "a"): 3,
        ("spec", "selector"): {"a": "1", "b": "2"},
        ("spec", "gone"): None,
    }
