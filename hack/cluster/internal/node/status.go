package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Load loads images from buildah's storage into all running nodes.
func Load(ctx context.Context, c Config, names []string) error {
	if len(names) == 0 {
		return errors.New("load needs the name of at least one image that buildah has built")
	}
	unlock, err := lock(ctx, c) // a node that is starting would miss the images
	if err != nil {
		return err
	}
	defer unlock()
	first, err := running(c)
	if err != nil {
		return err
	}
	further, err := first.further()
	if err != nil {
		return err
	}
	for _, s := range append([]*State{first}, further...) {
		if !s.alive() {
			continue // it gets the images when it is added again
		}
		if err := s.loadImages(ctx, names); err != nil {
			return fmt.Errorf("node %s: %w", s.Name, err)
		}
	}
	return nil
}

func (s *State) loadImages(ctx context.Context, names []string) error {
	store, err := s.store(ctx)
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
	fmt.Printf("api: %s\nnode: %s %s, up since %s\n",
		s.server(), s.Name, n.Status.NodeInfo.KubeletVersion, n.CreationTimestamp.Format(time.RFC3339))
	further, err := s.further()
	if err != nil {
		return err
	}
	for _, f := range further {
		fmt.Printf("node: %s, %s\n", f.Name, f.describe(ctx, client))
	}
	fmt.Printf("pods: %d, running %d\nimages: %d\nstate: up\n", len(pods.Items), running, len(n.Status.Images))
	return nil
}

func (s *State) describe(ctx context.Context, client kubernetes.Interface) string {
	if !s.alive() {
		return "not running"
	}
	if err := s.ready(ctx, client, time.Time{}); err != nil {
		return firstLine(err)
	}
	return "logs: " + s.path("log")
}
