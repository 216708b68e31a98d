package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"serving.vllmendpoint.dev/hack/cluster/internal/proc"
)

// upLimit bounds the whole start; each step also has its own limit.
const upLimit = 5 * time.Minute

// Up starts the first node and returns when it is ready. It removes the remains of an earlier cluster that is not healthy.
func Up(ctx context.Context, c Config) error {
	if os.Geteuid() != 0 {
		return errors.New("up needs root: it makes network and mount namespaces")
	}
	unlock, err := lock(ctx, c)
	if err != nil {
		return err
	}
	defer unlock()
	s, err := load(c.Dir)
	if err != nil {
		return err
	}
	if s != nil {
		if err := s.healthy(ctx, 10*time.Second); err == nil {
			fmt.Printf("already up: %s\n", s.Kubeconfig())
			return nil
		} else {
			fmt.Printf("removing what is left of an earlier start (%v)\n", firstLine(err))
		}
	}
	if err := clean(c, false); err != nil {
		return err
	}
	if err := checkRanges(c); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, upLimit)
	defer cancel()
	if err := start(ctx, c); err != nil {
		if ctx.Err() != nil {
			fmt.Println("interrupted: cleaning up")
		}
		return errors.Join(err, kill(c)) // the logs stay until the next up or down
	}
	return nil
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

func start(ctx context.Context, c Config) error {
	s := &State{Node: c.first(), Boot: bootID()}
	others, err := otherClusters(c.id())
	if err != nil {
		return err
	}
	if !others { // otherwise a kubelet has already changed the settings, and the other cluster restores them
		s.Sysctls = readSysctls()
	}
	return s.start(ctx, stopwatch("up"), func() error { return connectHost(c, s.Pid) }, nil)
}

// stopwatch returns a function that prints a line with the time since its creation.
func stopwatch(command string) func(line string) {
	begun := time.Now()
	return func(line string) { fmt.Printf("[%s %5.1fs] %s\n", command, time.Since(begun).Seconds(), line) }
}

// start starts a node and returns when it is ready. connect creates its link to other namespaces; onLine, if not
// nil, is called with each line of its progress.
func (s *State) start(ctx context.Context, say func(string), connect func() error, onLine func(string) error) error {
	if err := os.MkdirAll(s.path("log"), 0o755); err != nil {
		return err
	}
	// Mount points must exist on the host. They are kept: removing a folder would remove another node's mount.
	for target := range bindMounts {
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
	}
	if err := s.save(); err != nil {
		return err
	}
	node, err := spawn(s)
	if err != nil {
		return err
	}
	defer node.close()
	if err := connect(); err != nil {
		return err
	}
	if err := makeCgroups(s.cgroup(), s.Pid); err != nil {
		return err
	}
	say("namespaces, control groups and the network link are ready")
	if _, err := node.start.Write([]byte{1}); err != nil {
		return fmt.Errorf("start the node: %w", err)
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(node.progress); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			go func() { // ends the reader
				for range lines {
				}
			}()
			return fmt.Errorf("the node is not up: %w", context.Cause(ctx))
		case line, ok := <-lines:
			switch {
			case !ok:
				log := s.path("log", "node.log")
				return fmt.Errorf("the node ended while it started; the end of %s:\n%s", log, proc.Tail(log, 12))
			case line == "ready":
				say("ready: KUBECONFIG=" + s.Kubeconfig())
				return nil
			}
			say(line)
			if onLine == nil {
				continue
			}
			if err := onLine(line); err != nil {
				return err
			}
		}
	}
}

// spawned is the node's init, from the view of up.
type spawned struct{ start, progress *os.File }

func (n spawned) close() {
	n.start.Close()
	n.progress.Close()
}

// spawn creates the node's init in new namespaces, where it waits for a byte; if up dies before, it exits. So a node
// never runs without being recorded in the state.
func spawn(s *State) (spawned, error) {
	none := spawned{}
	startR, startW, err := os.Pipe()
	if err != nil {
		return none, err
	}
	defer startR.Close()
	progressR, progressW, err := os.Pipe()
	if err != nil {
		return none, err
	}
	defer progressW.Close()
	log, err := os.Create(s.path("log", "node.log"))
	if err != nil {
		return none, err
	}
	defer log.Close()
	cmd := exec.Command("/proc/self/exe", "node-init", s.path())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{startR, progressW} // goFD, progressFD
	cmd.Env = append(os.Environ(), "PATH="+s.Bin+":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true, // only up receives Ctrl-C, and then cleans up
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	}
	if err := cmd.Start(); err != nil {
		return none, fmt.Errorf("make the node's namespaces: %w", err)
	}
	go cmd.Wait() // reaps it if it ends before up does
	s.Pid, s.Started = cmd.Process.Pid, proc.StartTime(cmd.Process.Pid)
	return spawned{startW, progressR}, s.save()
}

// alive reports whether the node's init is running.
func (s *State) alive() bool {
	return s.Pid != 0 && s.Boot == bootID() && s.Started != "" && proc.StartTime(s.Pid) == s.Started
}

// healthy returns nil if the start was complete, the API answers and the node is Ready. It retries until the limit,
// because a busy machine may need a moment.
func (s *State) healthy(ctx context.Context, limit time.Duration) error {
	if !s.alive() {
		return errors.New("its first process has ended")
	}
	if _, err := os.Stat(s.readyPath()); err != nil {
		return errors.New("its start was not complete")
	}
	client, err := s.client()
	if err != nil {
		return err
	}
	group := &proc.Group{} // has no programs: it only bounds the wait
	return group.Until(ctx, "the running cluster to be healthy", limit, func(ctx context.Context) error {
		return s.ready(ctx, client, time.Time{})
	})
}

func (s *State) client() (*kubernetes.Clientset, error) {
	config, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig())
	if err != nil {
		return nil, err
	}
	config.Timeout = 5 * time.Second
	return kubernetes.NewForConfig(config)
}

// ready returns nil if the node is Ready, by a report of its kubelet that is not older than since. (After a node was
// killed, its last report remains until the node controller marks the node as unreachable.)
func (n Node) ready(ctx context.Context, client kubernetes.Interface, since time.Time) error {
	found, err := client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, condition := range found.Status.Conditions {
		switch {
		case condition.Type != corev1.NodeReady:
		case condition.LastHeartbeatTime.Time.Before(since.Truncate(time.Second)): // it has no fractions of seconds
			return errors.New("the kubelet has not reported since its start")
		case condition.Status == corev1.ConditionTrue:
			return nil
		default:
			return fmt.Errorf("the node is not Ready: %s: %s", condition.Reason, condition.Message)
		}
	}
	return errors.New("the node has no Ready condition yet")
}
