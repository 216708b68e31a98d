package netpol

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	settle     = 30 * time.Millisecond // changes come in bursts, for instance the pods of a Deployment
	retryAfter = time.Second
)

// Run keeps the table of its network namespace in sync with the API.
func Run(ctx context.Context, kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	pods, namespaces, policies := factory.Core().V1().Pods(), factory.Core().V1().Namespaces(), factory.Networking().V1().NetworkPolicies()
	changed := make(chan struct{}, 1)
	signal := func() {
		select {
		case changed <- struct{}{}:
		default: // one is already pending
		}
	}
	for _, informer := range []cache.SharedIndexInformer{pods.Informer(), namespaces.Informer(), policies.Informer()} {
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { signal() }, UpdateFunc: func(_, _ any) { signal() }, DeleteFunc: func(any) { signal() },
		}); err != nil {
			return err
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	signal()
	applied := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		time.Sleep(settle)
		var w World
		if w.Pods, err = pods.Lister().List(labels.Everything()); err != nil {
			return err
		}
		if w.Namespaces, err = namespaces.Lister().List(labels.Everything()); err != nil {
			return err
		}
		if w.Policies, err = policies.Lister().List(labels.Everything()); err != nil {
			return err
		}
		rules := Render(w)
		if rules == applied {
			continue
		}
		if err := apply(ctx, rules); err != nil {
			fmt.Println(err)
			time.AfterFunc(retryAfter, signal)
			continue
		}
		applied = rules
		fmt.Printf("%s rules for %d pods and %d policies are active\n", time.Now().Format(time.RFC3339Nano), len(w.Pods), len(w.Policies))
	}
}

func apply(ctx context.Context, rules string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft refused the rules: %w\n%s\n%s", err, out, rules)
	}
	return nil
}
