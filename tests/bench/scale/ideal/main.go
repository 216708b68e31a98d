// Command ideal is a minimal operator with the same children, against which the operator's cost is measured. For each
// VLLMEndpoint it creates the children that a file describes, restores them, and writes a status with the same number
// of conditions. It reads no pods and no reports, and finds no causes.
package main

import (
	"flag"
	"fmt"
	"os"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

func main() {
	flags := flag.NewFlagSet("ideal", flag.ExitOnError) // controller-runtime registers its own flags in the default set
	kubeconfig := flags.String("kubeconfig", "", "how to reach the API")
	children := flags.String("children", "", "JSON list of the children of one endpoint, see render.go")
	metrics := flags.String("metrics", "0", "address of /metrics")
	workers := flags.Int("workers", 8, "endpoints reconciled at the same time")
	apply := flags.Bool("apply", false, "make children by server-side apply, not by create")
	if err := flags.Parse(os.Args[1:]); err != nil {
		os.Exit(2)
	}
	log.SetLogger(zap.New(zap.UseDevMode(false)))
	if err := run(*kubeconfig, *children, *metrics, *workers, *apply); err != nil {
		fmt.Fprintln(os.Stderr, "ideal:", err)
		os.Exit(1)
	}
}

// kinds are the kinds of the children, which are watched.
func kinds() []client.Object {
	return []client.Object{
		&appsv1.ControllerRevision{}, &corev1.ServiceAccount{}, &rbacv1.RoleBinding{}, &corev1.ConfigMap{},
		&networkingv1.NetworkPolicy{}, &corev1.Service{}, &appsv1.Deployment{},
	}
}

func run(kubeconfig, children, metrics string, workers int, apply bool) error {
	templates, err := load(children)
	if err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.QPS = -1 // the API server is the limit
	config.UserAgent = "ideal"
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return err
	}
	addEndpoint(scheme)
	manager, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                 scheme,
		Metrics:                server.Options{BindAddress: metrics},
		HealthProbeBindAddress: "0",
		Cache:                  cache.Options{DefaultTransform: cache.TransformStripManagedFields()},
	})
	if err != nil {
		return err
	}
	builder := ctrl.NewControllerManagedBy(manager).For(&Endpoint{}).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers})
	for _, kind := range kinds() {
		builder = builder.Owns(kind)
	}
	if err := builder.Complete(&reconciler{client: manager.GetClient(), scheme: scheme, templates: templates, apply: apply}); err != nil {
		return err
	}
	return manager.Start(ctrl.SetupSignalHandler())
}
