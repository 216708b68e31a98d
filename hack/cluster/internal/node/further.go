package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"serving.vllmendpoint.dev/hack/cluster/internal/images"
)

// imagesPath exists once the images of the first node have been added to a further node.
func (n Node) imagesPath() string { return n.path("images") }

// store connects to the node's containerd. Its socket is in the node's mount namespace, which is accessible through its
// first process.
func (s *State) store(ctx context.Context) (*images.Store, error) {
	return images.Connect(ctx, fmt.Sprintf("/proc/%d/root%s", s.Pid, socket))
}

// running returns the state of the first node, with an error if it is not running.
func running(c Config) (*State, error) {
	s, err := load(c.Dir)
	if err != nil {
		return nil, err
	}
	if s == nil || !s.alive() {
		return nil, errors.New("the cluster is not up: run `cluster up` first")
	}
	return s, nil
}

// Add starts a further node and returns when it is Ready. With the name of a node that was killed, it starts that node
// with an empty disk, except for its images. An empty name selects a free default.
func Add(ctx context.Context, c Config, name string, taints []corev1.Taint) error {
	unlock, err := lock(ctx, c)
	if err != nil {
		return err
	}
	defer unlock()
	first, err := running(c)
	if err != nil {
		return err
	}
	if err := first.healthy(ctx, 10*time.Second); err != nil {
		return fmt.Errorf("the first node is not healthy: %w", err)
	}
	existing, err := first.further()
	if err != nil {
		return err
	}
	n, err := first.furtherNode(name, existing)
	if err != nil {
		return err
	}
	for _, s := range existing {
		if s.Name != n.Name {
			continue
		}
		if _, err := os.Stat(s.readyPath()); err == nil && s.alive() {
			return fmt.Errorf("the node %s is already running: remove it first, or select another name", s.Name)
		}
		if err := s.terminate(); err != nil { // its start was interrupted
			return err
		}
	}
	n.Taints = taints
	s := &State{Node: n, Boot: bootID()}
	if err := errors.Join(disconnectFirst(first, n), s.removeFiles()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, upLimit)
	defer cancel()
	if err := s.join(ctx, first); err != nil {
		if ctx.Err() != nil {
			fmt.Println("interrupted: cleaning up")
		}
		// The logs stay until the node is added again or removed.
		return errors.Join(err, disconnectFirst(first, n), s.terminate())
	}
	return nil
}

func (s *State) join(ctx context.Context, first *State) error {
	say := stopwatch("node add")
	connect := func() error { return connectFirst(first, s.Node, s.Pid) }
	return s.start(ctx, say, connect, func(line string) error {
		if line != containerdReady {
			return nil
		}
		copied, err := s.copyImages(ctx, first)
		if err != nil {
			return err
		}
		say(fmt.Sprintf("%d images of %s are linked", copied, first.Name))
		return os.WriteFile(s.imagesPath(), nil, 0o644)
	})
}

func (s *State) copyImages(ctx context.Context, first *State) (int, error) {
	from, err := first.store(ctx)
	if err != nil {
		return 0, err
	}
	defer from.Close()
	to, err := s.store(ctx)
	if err != nil {
		return 0, err
	}
	defer to.Close()
	return to.CopyFrom(ctx, from)
}

// find returns the states of the first node, which may be nil, and of the further node with this name.
func find(c Config, name string) (first, node *State, err error) {
	if first, err = load(c.Dir); err != nil {
		return nil, nil, err
	}
	further, err := c.further()
	if err != nil {
		return nil, nil, err
	}
	var names []string
	for _, s := range further {
		if s.Name == name {
			return first, s, nil
		}
		names = append(names, s.Name)
	}
	if name == Name {
		return nil, nil, fmt.Errorf("%s runs the control plane: `cluster down` removes it", name)
	}
	return nil, nil, fmt.Errorf("there is no further node %q; further nodes: %v", name, names)
}

// Kill simulates the loss of a further node: its packets are dropped from one moment to the next, and all of its
// processes are killed. The Node object stays.
func Kill(ctx context.Context, c Config, name string) error {
	unlock, err := lock(ctx, c)
	if err != nil {
		return err
	}
	defer unlock()
	first, s, err := find(c, name)
	if err != nil {
		return err
	}
	if !s.alive() {
		return fmt.Errorf("the node %s is not running", name)
	}
	// First the link: the kernel closes the connections of a process that is killed, and the peers must not notice.
	if err := disconnectFirst(first, s.Node); err != nil {
		return err
	}
	if err := s.terminate(); err != nil {
		return err
	}
	fmt.Printf("killed %s\n", name)
	return nil
}

// Remove removes a further node, its Node object and its pods. It does not drain the node before.
func Remove(ctx context.Context, c Config, name string) error {
	unlock, err := lock(ctx, c)
	if err != nil {
		return err
	}
	defer unlock()
	begun := time.Now()
	first, s, err := find(c, name)
	if err != nil {
		return err
	}
	if err := errors.Join(s.terminate(), disconnectFirst(first, s.Node)); err != nil {
		return err // the state is kept for another attempt
	}
	if first != nil && first.alive() {
		if err := first.forget(ctx, name); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(s.path()); err != nil {
		return err
	}
	fmt.Printf("removed %s after %.1fs\n", name, time.Since(begun).Seconds())
	return nil
}

// forget deletes a Node object and the node's pods, which the controllers would delete after about a minute.
func (s *State) forget(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	client, err := s.client()
	if err != nil {
		return err
	}
	if err := client.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete the Node object %s: %w", name, err)
	}
	pods, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + name})
	if err != nil {
		return fmt.Errorf("list the pods of the node %s: %w", name, err)
	}
	for _, p := range pods.Items {
		options := metav1.DeleteOptions{GracePeriodSeconds: new(int64)} // no kubelet will confirm that the pod has ended
		if err := client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, options); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete the pod %s/%s of the node %s: %w", p.Namespace, p.Name, name, err)
		}
	}
	return nil
}
