package node

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"serving.vllmendpoint.dev/hack/cluster/internal/proc"
)

// inNewNetwork returns the state of a node whose first process has a network namespace of its own.
func inNewNetwork(t *testing.T, n Node) *State {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := cmd.Start(); errors.Is(err, unix.EPERM) {
		t.Skip("network namespaces need root")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return &State{Node: n, Boot: bootID(), Pid: cmd.Process.Pid, Started: proc.StartTime(cmd.Process.Pid)}
}

func TestNodesReachEachOtherUntilTheyAreDisconnected(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	c := config(t.TempDir(), "10.98.7.0/29", "10.243.0.0/21")
	c.Service = netip.MustParsePrefix("10.98.8.0/24") // a cluster may be running
	first, second := inNewNetwork(t, c.first()), inNewNetwork(t, Node{Config: c, Name: "second", Index: 1})
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(connectHost(c, first.Pid))
	t.Cleanup(func() { _ = removeLink(c.hostLink()) })
	do(inNetworkOf(first.Pid, func() error { return connectNode(first.Node) }))
	do(connectFirst(first, second.Node, second.Pid))
	var listener net.Listener
	do(inNetworkOf(second.Pid, func() (err error) {
		if err = connectNode(second.Node); err == nil {
			listener, err = net.Listen("tcp4", ":8080")
		}
		return err
	}))
	defer listener.Close()
	dial := func(limit time.Duration) error {
		connection, err := net.DialTimeout("tcp4", second.ip()+":8080", limit)
		if err == nil {
			connection.Close()
		}
		return err
	}
	// The first packet is lost if the link is not up yet; the kernel sends the next one after a second.
	const enough = 10 * time.Second
	do(dial(enough)) // from the host, through the first node
	do(inNetworkOf(first.Pid, func() error { return dial(enough) }))

	do(disconnectFirst(first, second.Node))

	var timeout net.Error
	if err := dial(300 * time.Millisecond); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("got %v, want a timeout: the packets of a lost machine get no answer", err)
	}
	do(disconnectFirst(first, second.Node)) // it can be repeated
	do(connectFirst(first, second.Node, second.Pid))
}
