package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"serving.vllmendpoint.dev/hack/cluster/internal/images"
)

// Load loads images from buildah's storage into the running node.
func Load(ctx context.Context, c Config, names []string) error {
	if len(names) == 0 {
		return errors.New("load needs the name of at least one image that buildah has built")
	}
	s, err := load(c.Dir)
	if err != nil {
		return err
	}
	if s == nil || !s.alive() {
		return errors.New("the cluster is not up: run `cluster up` first")
	}
	// The socket is in the node's mount namespace, which is accessible through its first process.
	store, err := images.Connect(ctx, fmt.Sprintf("/proc/%d/root%s", s.Pid, socket))
	if err != nil {
		return err
	}
	defer store.Close()
	for _, name := range names {
		if err := store.Load(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// Status prints the running components, one per line. It fails unless the cluster is up and healthy, for scripts.
func Status(ctx context.Context, c Config) error {
	s, err := load(c.Dir)
	if err != nil {
		return err
	}
	if s == nil || !s.alive() {
		fmt.Println("state: down")
		return errors.New("the cluster is not up")
	}
	fmt.Printf("kubeconfig: %s\npid: %d\nlogs: %s\n", s.Kubeconfig(), s.Pid, s.path("log"))
	if err := s.healthy(ctx, 3*time.Second); err != nil {
		fmt.Println("state: unhealthy")
		return err
	}
	client, err := s.client()
	if err != nil {
		return err
	}
	n, err := client.CoreV1().Nodes().Get(ctx, Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	pods, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	running := 0
	for _, p := range pods.Items {
		if p.Status.Phase == corev1.PodRunning {
			running++
		}
	}
	fmt.Printf("api: https://%s:%d\nnode: %s %s, up since %s\npods: %d, running %d\nimages: %d\nstate: up\n",
		s.nodeIP(), apiPort, Name, n.Status.NodeInfo.KubeletVersion, n.CreationTimestamp.Format(time.RFC3339),
		len(pods.Items), running, len(n.Status.Images))
	return nil
}
