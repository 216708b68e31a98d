"""Compares ``strategic_merge`` with kubectl on generated templates."""

import json
import random
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.project_cache import BIN
from vllmendpoint_operator.plan.pods.strategic_merge import MergeError, strategic_merge

KUBECTL = BIN / "kubectl"
NAMES = ("main", "b", "c")


def patched(templates, patch):
    """The templates as kubectl merges them. Raises LookupError with kubectl's message if it rejects one."""
    with tempfile.TemporaryDirectory() as folder:
        for number, template in enumerate(templates):
            pod_template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": f"t{number}"}}
            Path(folder, f"{number:03}.json").write_text(json.dumps({**pod_template, "template": template}))
        command = [KUBECTL, "patch", "--local", "-f", folder, "--type=strategic", "-o", "json", "-p"]
        done = subprocess.run(
            [*command, json.dumps({"template": patch})],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    if done.returncode:
        raise LookupError(done.stderr)
    found, at = [], 0
    while at < len(done.stdout.rstrip()):
        one, at = json.JSONDecoder().raw_decode(done.stdout, at)
        found.append(one["template"])
        at += 1
    return found


def ordered(value):
    """``value`` with sorted lists, because kubectl puts new items first, and without empty values.

    Without directives too: kubectl keeps those in new objects, where they have no effect.
    """
    if isinstance(value, dict):
        kept = {k: ordered(v) for k, v in value.items() if not k.startswith("$")}
        return {k: v for k, v in kept.items() if v not in ({}, [], None)}
    if isinstance(value, list):
        kept = [ordered(v) for v in value if not (isinstance(v, dict) and "$patch" in v)]
        return sorted(kept, key=lambda v: json.dumps(v, sort_keys=True))
    return value


class Maker:
    """Generates templates, or patches with directives.

    It uses a seed and not Hypothesis, whose examples of such large objects are nearly all empty.
    """

    def __init__(self, seed, *, patch=False):
        self.random, self.patch = random.Random(seed), patch

    def fields(self, **kinds):
        """Some of the fields; in a patch, some are null."""
        made = {}
        for name, make in kinds.items():
            if self.random.random() < 0.5:
                made[name] = None if self.patch and self.random.random() < 0.1 else make()
        return made

    def one(self, *values):
        return lambda: self.random.choice(values)

    def some(self, *values):
        return lambda: self.random.sample(values, self.random.randrange(len(values) + 1))

    def keyed(self, key, values, more=dict):
        """A list with the merge key ``key``."""

        def make():
            items = [{key: value, **more()} for value in self.some(*values)()]
            if self.patch and self.random.random() < 0.3:
                items += [{key: value, "$patch": "delete"} for value in self.some(*values)()]
                items += [{"$patch": "replace"}] * self.random.randrange(2)
                self.random.shuffle(items)
            return items

        return make

    def words(self, *, whole=False):
        """A map of strings. ``whole``: every template has it, so that a patch may replace it."""

        def make():
            found = {name: self.random.choice("12") for name in self.some(*NAMES)()} or {"main": "1"}
            if not self.patch:
                return found
            if whole and self.random.random() < 0.3:
                return self.random.choice([{**found, "$patch": "replace"}, {"$patch": "delete"}])
            return {name: self.random.choice([value, None]) for name, value in found.items()}

        return make

    def volumes(self):
        def source():
            if self.patch and self.random.random() < 0.3:
                return {"$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/h"}}
            directory = self.fields(sizeLimit=self.one("1Gi", "2Gi"), medium=self.one("Memory"))
            return self.fields(emptyDir=lambda: directory, configMap=lambda: {"name": "c"})

        return self.keyed("name", NAMES, source)

    def container(self):
        number, text = self.one(1, 2, 3), self.one("x", "y")
        probe = {"path": text, "port": self.one("report")}
        field = {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}
        capabilities = {"drop": self.some("x", "y"), "add": self.some("x", "y")}
        return self.fields(
            image=text,
            args=self.some("x", "y"),
            env=self.keyed("name", NAMES, lambda: self.fields(value=text, valueFrom=lambda: field)),
            ports=self.keyed("containerPort", (1, 2, 3), lambda: self.fields(name=text, hostPort=number)),
            volumeMounts=self.keyed("mountPath", ("/a", "/b"), lambda: self.fields(name=text, subPath=text)),
            volumeDevices=self.keyed("devicePath", ("/a", "/b"), lambda: self.fields(name=text)),
            resources=lambda: self.fields(limits=self.words(), requests=self.words()),
            securityContext=lambda: self.fields(
                runAsUser=number, capabilities=lambda: self.fields(**capabilities)
            ),
            readinessProbe=lambda: self.fields(periodSeconds=number, httpGet=lambda: self.fields(**probe)),
        )

    def template(self):
        number, text = self.one(1, 2), self.one("x", "y")
        affinity = {
            "nodeAffinity": dict,
            "podAffinity": lambda: {"requiredDuringSchedulingIgnoredDuringExecution": []},
        }
        always = {
            "nodeSelector": self.words(whole=True),
            "containers": self.keyed("name", NAMES, self.container),
        }
        more = {
            "initContainers": self.keyed("name", NAMES, self.container),
            "volumes": self.volumes(),
            "imagePullSecrets": self.keyed("name", NAMES),
            "schedulingGates": self.keyed("name", NAMES),
            "hostAliases": self.keyed(
                "ip", ("1.1.1.1", "2.2.2.2"), lambda: {"hostnames": self.some(*NAMES)()}
            ),
            "topologySpreadConstraints": self.keyed("topologyKey", NAMES, lambda: {"maxSkew": number()}),
            "tolerations": lambda: [{"key": key} for key in self.some(*NAMES)()],
            "affinity": lambda: self.fields(**affinity),
            "securityContext": lambda: self.fields(runAsUser=number, supplementalGroups=self.some(1, 2)),
            "terminationGracePeriodSeconds": number,
            "serviceAccountName": text,
        }
        labels, annotations = self.words(whole=True), self.words()
        if self.patch:
            metadata = self.fields(labels=labels, annotations=annotations)
            return {"metadata": metadata, "spec": self.fields(**always, **more)}
        metadata = {"labels": labels(), **self.fields(annotations=annotations)}
        return {
            "metadata": metadata,
            "spec": {**{name: make() for name, make in always.items()}, **self.fields(**more)},
        }


@pytest.fixture(scope="module", autouse=True)
def kubectl():
    if not KUBECTL.exists():
        pytest.skip(f"no kubectl in {KUBECTL.parent}: `make cluster` builds it")


@pytest.mark.parametrize("seed", range(25))
def test_every_merge_equals_kubectls(seed):
    patch = Maker(seed, patch=True).template()
    templates = [Maker(f"{seed}.{number}").template() for number in range(12)]
    theirs = patched(templates, patch)
    assert len(theirs) == len(templates)
    for template, merged in zip(templates, theirs, strict=True):
        ours = strategic_merge(template, patch)
        assert "$" not in json.dumps(ours)
        assert ordered(ours) == ordered(merged)


BASE = {
    "metadata": {"labels": {"a": "1"}},
    "spec": {
        "containers": [{"name": "main", "image": "i", "env": [{"name": "A", "value": "1"}]}],
        "volumes": [{"name": "v", "emptyDir": {}}],
    },
}


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"spec": {"containers": [{"image": "x"}]}}, "An item of containers has no name. Add it."),
        ({"spec": {"volumes": [{"$patch": "delete"}]}}, "An item of volumes has no name. Add it."),
        (
            {"spec": {"volumes": [{"name": "v", "$patch": "away"}]}},
            "$patch must be replace or delete.",
        ),
        ({"metadata": {"labels": {"$patch": "merge"}}}, "$patch must be replace or delete."),
        (
            {"spec": {"volumes": [{"name": "v", "$retainKeys": ["name"], "configMap": {"name": "c"}}]}},
            "The patch sets configMap, which $retainKeys does not list. Add it to $retainKeys.",
        ),
        (
            {"spec": {"volumes": [{"name": "v", "$retainKeys": "name"}]}},
            "$retainKeys must be a list.",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_patches_that_kubectl_rejects_are_rejected(patch, message):
    with pytest.raises(LookupError):
        patched([BASE], patch)
    with pytest.raises(MergeError) as error:
        strategic_merge(BASE, patch)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["$setElementOrder/containers", "$deleteFromPrimitiveList/finalizers"])
def test_an_unknown_directive_is_rejected_anywhere(name):
    for patch in ({"spec": {name: []}}, {"spec": {"affinity": {"nodeAffinity": {name: []}}}}):
        with pytest.raises(MergeError, match=r"is not supported\. Remove it\."):
            strategic_merge(BASE, patch)


def test_a_new_object_with_patch_replace_is_kept_although_kubectl_drops_it():
    patch = {"spec": {"nodeSelector": {"$patch": "replace", "zone": "a"}}}
    assert "nodeSelector" not in patched([BASE], patch)[0]["spec"]
    assert strategic_merge(BASE, patch)["spec"]["nodeSelector"] == {"zone": "a"}
