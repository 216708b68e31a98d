package main

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var groupVersion = schema.GroupVersion{Group: "serving.vllmendpoint.dev", Version: "v1alpha1"}

// Endpoint has the fields of a VLLMEndpoint that are needed here.
type Endpoint struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   EndpointSpec   `json:"spec"`
	Status EndpointStatus `json:"status,omitempty"`
}

// EndpointSpec is read, never written.
type EndpointSpec struct {
	Replicas int32 `json:"replicas"`
}

// EndpointStatus has the fields that a user would wait for.
type EndpointStatus struct {
	ObservedGeneration int64              `json:"observedGeneration"`
	Replicas           int32              `json:"replicas"`
	ReadyReplicas      int32              `json:"readyReplicas"`
	Conditions         []metav1.Condition `json:"conditions,omitempty"`
}

// EndpointList is the response of a list.
type EndpointList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []Endpoint `json:"items"`
}

// DeepCopyObject implements runtime.Object.
func (e *Endpoint) DeepCopyObject() runtime.Object {
	out := *e
	e.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Status.Conditions = append([]metav1.Condition(nil), e.Status.Conditions...)
	return &out
}

// DeepCopyObject implements runtime.Object.
func (l *EndpointList) DeepCopyObject() runtime.Object {
	out := *l
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	out.Items = make([]Endpoint, len(l.Items))
	for i := range l.Items {
		out.Items[i] = *l.Items[i].DeepCopyObject().(*Endpoint)
	}
	return &out
}

func addEndpoint(scheme *runtime.Scheme) {
	scheme.AddKnownTypeWithName(groupVersion.WithKind("VLLMEndpoint"), &Endpoint{})
	scheme.AddKnownTypeWithName(groupVersion.WithKind("VLLMEndpointList"), &EndpointList{})
	metav1.AddToGroupVersion(scheme, groupVersion)
}
