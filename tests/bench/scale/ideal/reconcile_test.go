package main

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
)

const deployment = `{"apiVersion": "apps/v1", "kind": "Deployment",
 "metadata": {"name": "name-placeholder-workers", "labels": {"of": "namespace-placeholder"}},
 "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {
  "containers": [{"name": "main", "image": "i", "env": [{"name": "A", "value": "1"}]}],
  "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}]}}}}`

func rendered(t *testing.T) *appsv1.Deployment {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	made, err := template{schema.FromAPIVersionAndKind("apps/v1", "Deployment"), []byte(deployment)}.render(scheme, "e", "n")
	if err != nil {
		t.Fatal(err)
	}
	return made.(*appsv1.Deployment)
}

func TestWhatTheAPIServerAddsIsNoDifference(t *testing.T) {
	live := rendered(t)
	if live.Name != "e-workers" || live.Namespace != "n" || live.Labels["of"] != "n" {
		t.Fatalf("rendered as %s/%s of %s", live.Namespace, live.Name, live.Labels["of"])
	}
	live.UID, live.ResourceVersion, live.Generation, live.CreationTimestamp = "u", "7", 1, metav1.Now()
	live.Annotations["deployment.kubernetes.io/revision"] = "1"
	live.Spec.RevisionHistoryLimit = new(int32)
	live.Spec.Template.Spec.Containers[0].TerminationMessagePath = "/dev/termination-log"
	live.Status.ReadyReplicas = 1
	if !isUpToDate(rendered(t), live) {
		t.Error("it would be updated at every look")
	}
	live.Annotations[digest] = "another"
	if isUpToDate(rendered(t), live) {
		t.Error("a change would not be written")
	}
}
