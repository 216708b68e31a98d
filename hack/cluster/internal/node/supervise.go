package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"serving.vllmendpoint.dev/hack/cluster/internal/control"
	"serving.vllmendpoint.dev/hack/cluster/internal/images"
	"serving.vllmendpoint.dev/hack/cluster/internal/pki"
	"serving.vllmendpoint.dev/hack/cluster/internal/proc"
)

const socket = "/run/containerd/containerd.sock"

// containerdReady is the line of progress after which images can be added.
const containerdReady = "containerd is ready"

// supervisor starts the node's programs, inside the namespaces.
type supervisor struct {
	*State
	*proc.Group
	progress *os.File
}

// Supervise starts the node and keeps its programs running; it returns only if it cannot.
func Supervise(ctx context.Context, dir string) error {
	const progressFD = 3
	unix.CloseOnExec(progressFD) // no child may keep it open
	state, err := load(dir)
	if err != nil {
		return err
	}
	c := state.Config
	s := &supervisor{
		State:    state,
		Group:    proc.NewGroup(c.Bin, state.path("log")),
		progress: os.NewFile(progressFD, "progress"),
	}
	bringUp := s.bringUpFirst
	if state.Index > 0 {
		bringUp = s.bringUpFurther
	}
	if err := bringUp(ctx); err != nil {
		return err
	}
	if err := os.WriteFile(state.readyPath(), nil, 0o644); err != nil {
		return err
	}
	s.say("ready")
	s.progress.Close()
	return <-s.Failed()
}

// say sends a line to up, which may have ended.
func (s *supervisor) say(line string) {
	fmt.Println(time.Now().Format(time.RFC3339Nano), line)
	fmt.Fprintln(s.progress, line)
}

// bringUpFirst starts the control plane and the node.
func (s *supervisor) bringUpFirst(ctx context.Context) error {
	if err := connectNode(s.Node); err != nil {
		return err
	}
	plane := &control.Plane{
		Dir: s.Dir, IP: s.ip(), Port: apiPort, EtcdPort: 2379, ServiceCIDR: s.Service, PodCIDR: s.Pods, ControllerQPS: 300,
	}
	keys, err := plane.Prepare(s.Kubeconfig())
	if err != nil {
		return err
	}
	if err := s.writeFiles(keys); err != nil {
		return err
	}
	if err := s.startAll(append([]proc.Command{s.containerd()}, plane.Commands(keys)...)); err != nil {
		return err
	}
	if err := s.prepareStore(ctx); err != nil {
		return err
	}
	s.say(containerdReady)
	if err := control.Answers(ctx, s.Kubeconfig(), time.Minute, s.Group); err != nil {
		return err
	}
	s.say("API server is ready")
	if err := s.startAll(s.nodePrograms()); err != nil {
		return err
	}
	if err := s.addons(ctx); err != nil {
		return err
	}
	if err := s.Start(s.netpol()); err != nil { // only after its permissions exist
		return err
	}
	if err := s.awaitReady(ctx, time.Time{}); err != nil {
		return err
	}
	if err := control.Ready(ctx, s.Kubeconfig(), time.Minute, s.Group); err != nil {
		return err
	}
	return s.dns(ctx)
}

// bringUpFurther starts a node that joins the control plane of the first node.
func (s *supervisor) bringUpFurther(ctx context.Context) error {
	begun := time.Now()
	if err := connectNode(s.Node); err != nil {
		return err
	}
	keys, err := pki.Join(s.Config.path("pki"), s.path("pki"))
	if err != nil {
		return err
	}
	if err := s.writeFiles(keys); err != nil {
		return err
	}
	if err := s.Start(s.containerd()); err != nil {
		return err
	}
	if err := s.prepareStore(ctx); err != nil {
		return err
	}
	s.say(containerdReady)
	// The kubelet starts after the images have been added, because it would try to pull an image that is missing.
	if err := s.Until(ctx, "the images of the first node to be added", upLimit, func(context.Context) error {
		_, err := os.Stat(s.imagesPath())
		return err
	}); err != nil {
		return err
	}
	if err := s.startAll(append(s.nodePrograms(), s.netpol())); err != nil {
		return err
	}
	return s.awaitReady(ctx, begun)
}

func (s *supervisor) startAll(commands []proc.Command) error {
	for _, c := range commands {
		if err := s.Start(c); err != nil {
			return err
		}
	}
	return nil
}

func (s *supervisor) awaitReady(ctx context.Context, since time.Time) error {
	client, err := s.client()
	if err != nil {
		return err
	}
	if err := s.Until(ctx, "the node to be Ready", time.Minute, func(ctx context.Context) error {
		return s.ready(ctx, client, since)
	}); err != nil {
		return err
	}
	s.say("node is Ready")
	return nil
}

func (s *supervisor) containerd() proc.Command {
	return proc.Command{Name: "containerd", Args: []string{"--config", s.path("containerd.toml")}}
}

// prepareStore waits until containerd is ready, removes the remains of an earlier node except images from its store, and
// adds the two images that the node itself needs.
func (s *supervisor) prepareStore(ctx context.Context) error {
	var store *images.Store
	err := s.Until(ctx, "containerd to answer", 30*time.Second, func(ctx context.Context) (err error) {
		store, err = images.Connect(ctx, socket)
		return err
	})
	if err != nil {
		return err
	}
	defer store.Close()
	if err := store.RemovePods(ctx); err != nil {
		return err
	}
	if err := store.AddProgram(ctx, pauseImage, s.Config.binary("pause")); err != nil {
		return err
	}
	return store.AddProgram(ctx, corednsImage, s.Config.binary("coredns"))
}

func (c Config) binary(name string) string { return filepath.Join(c.Bin, name) }

// addons creates the objects that every cluster has besides those that the API server creates.
func (s *supervisor) addons(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.binary("kubectl"), "--kubeconfig", s.Kubeconfig(), "create", "--validate=false", "-f", s.path("addons.yaml"))
	cmd.Dir = s.Dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("create the objects of addons.yaml: %w\n%s", err, out)
	}
	return nil
}

// dns queries CoreDNS at its Service's address. An answer proves that pods run and that kube-proxy is configured.
func (s *supervisor) dns(ctx context.Context) error {
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: 500 * time.Millisecond}).DialContext(ctx, network, net.JoinHostPort(s.dnsIP(), "53"))
	}}
	err := s.Until(ctx, "cluster DNS to answer", time.Minute, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		found, err := resolver.LookupHost(ctx, "kubernetes.default.svc.cluster.local.")
		if err == nil && len(found) == 0 {
			err = errors.New("an empty answer")
		}
		return err
	})
	if err == nil {
		s.say("cluster DNS answers")
	}
	return err
}
