package main

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// The same number as the operator's, so that a status has the same size.
var conditionTypes = []string{
	"Accepted", "ResolvedRefs", "ConfigurationResolved", "Available", "Generating", "UpToDate", "Ready", "Reconciling",
	"Stalled",
}

type reconciler struct {
	client    client.Client
	scheme    *runtime.Scheme
	templates []template
	apply     bool // use server-side apply, as the operator does, instead of create
}

// Reconcile creates missing children, and writes the status if it has changed.
func (r *reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	endpoint := &Endpoint{}
	if err := r.client.Get(ctx, request.NamespacedName, endpoint); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !endpoint.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, nil
	}
	ready := true
	for _, template := range r.templates {
		live, err := r.keep(ctx, endpoint, template)
		if err != nil {
			return ctrl.Result{}, err
		}
		if deployment, ok := live.(*appsv1.Deployment); ok {
			ready = ready && available(deployment)
		}
	}
	// A conflict is not a failure: an event with the newer object follows.
	if err := r.writeStatus(ctx, endpoint, ready); err != nil && !apierrors.IsConflict(err) {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	return ctrl.Result{}, nil
}

// keep creates the child or restores it; the cache has the existing object.
func (r *reconciler) keep(ctx context.Context, endpoint *Endpoint, t template) (client.Object, error) {
	desired, err := t.render(r.scheme, endpoint.Name, endpoint.Namespace)
	if err != nil {
		return nil, err
	}
	if err := ctrl.SetControllerReference(endpoint, desired, r.scheme); err != nil {
		return nil, err
	}
	made, err := r.scheme.New(t.kind)
	if err != nil {
		return nil, err
	}
	live := made.(client.Object)
	err = r.client.Get(ctx, client.ObjectKeyFromObject(desired), live)
	if apierrors.IsNotFound(err) {
		return desired, r.write(ctx, desired)
	}
	if err != nil {
		return nil, err
	}
	if isUpToDate(desired, live) {
		return live, nil
	}
	desired.SetResourceVersion(live.GetResourceVersion())
	return desired, r.client.Update(ctx, desired)
}

func (r *reconciler) write(ctx context.Context, desired client.Object) error {
	if r.apply {
		return r.client.Patch(ctx, desired, client.Apply, client.FieldOwner("ideal"), client.ForceOwnership)
	}
	if err := r.client.Create(ctx, desired); !apierrors.IsAlreadyExists(err) {
		return err
	}
	return nil
}

// isUpToDate is true if the child was written as it is desired now. Changes by others are not detected, because that would
// cost more than is measured here.
func isUpToDate(desired, live client.Object) bool {
	return live.GetAnnotations()[digest] == desired.GetAnnotations()[digest]
}

func available(deployment *appsv1.Deployment) bool {
	return deployment.Status.ObservedGeneration >= deployment.Generation && deployment.Spec.Replicas != nil &&
		deployment.Status.AvailableReplicas >= *deployment.Spec.Replicas
}

func (r *reconciler) writeStatus(ctx context.Context, endpoint *Endpoint, ready bool) error {
	before := endpoint.DeepCopyObject().(*Endpoint).Status
	status := &endpoint.Status
	status.ObservedGeneration, status.Replicas, status.ReadyReplicas = endpoint.Generation, endpoint.Spec.Replicas, 0
	conditionStatus, reason, message := metav1.ConditionFalse, "Starting", "Not every Deployment is available yet."
	if ready {
		conditionStatus, reason, message = metav1.ConditionTrue, "Ready", "Every Deployment is available."
		status.ReadyReplicas = endpoint.Spec.Replicas
	}
	for _, kind := range conditionTypes {
		meta.SetStatusCondition(&status.Conditions, metav1.Condition{
			Type: kind, Status: conditionStatus, Reason: reason, Message: message, ObservedGeneration: endpoint.Generation,
		})
	}
	if equality.Semantic.DeepEqual(before, *status) {
		return nil
	}
	return r.client.Status().Update(ctx, endpoint)
}
