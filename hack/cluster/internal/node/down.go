package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"serving.vllmendpoint.dev/hack/cluster/internal/proc"
)

// imageStore is containerd's root, the only part that down keeps.
const imageStore = "containerd"

// machineSysctls lists the settings that the kubelet changes for the whole machine.
var machineSysctls = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

// Down removes all nodes; with purge, the images of the first node too.
func Down(ctx context.Context, c Config, purge bool) error {
	unlock, err := lock(ctx, c)
	if err != nil {
		return err
	}
	defer unlock()
	begun := time.Now()
	if err := clean(c, purge); err != nil {
		return err
	}
	fmt.Printf("down after %.1fs\n", time.Since(begun).Seconds())
	return nil
}

// clean removes everything outside of Dir, and everything in it except the image store. It works in any state of an
// earlier run.
func clean(c Config, purge bool) error {
	if err := kill(c); err != nil {
		return err // the state is kept for another attempt
	}
	if purge {
		return os.RemoveAll(c.Dir)
	}
	return c.first().removeFiles()
}

// kill terminates the processes of all nodes and reverts their changes outside of Dir.
func kill(c Config) error {
	further, err := c.further()
	if err != nil {
		return err
	}
	s, err := load(c.Dir)
	if err != nil {
		return err
	}
	if s == nil {
		s = &State{Node: c.first()}
	}
	var errs []error
	for _, node := range append(further, s) {
		errs = append(errs, node.terminate())
	}
	errs = append(errs, removeLink(s.hostLink()), removeCgroups(s.id()+"-*"))
	if s.Boot == bootID() {
		errs = append(errs, writeSysctls(s.Sysctls))
	}
	return errors.Join(errs...)
}

// terminate kills the node's processes and removes its control groups.
func (s *State) terminate() error {
	if s.alive() {
		// The kernel kills the whole PID namespace with its first process; network and mounts disappear with the processes.
		if err := syscall.Kill(s.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill the node's first process %d: %w", s.Pid, err)
		}
		for deadline := time.Now().Add(20 * time.Second); s.alive(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				return fmt.Errorf("the node's first process %d is still there 20 s after SIGKILL", s.Pid)
			}
		}
	}
	return removeCgroups(s.cgroup())
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

func readSysctls() map[string]string {
	values := map[string]string{}
	for _, key := range machineSysctls {
		if b, err := os.ReadFile("/proc/sys/" + key); err == nil {
			values[key] = strings.TrimSpace(string(b))
		}
	}
	return values
}

func writeSysctls(values map[string]string) error {
	var errs []error
	for key, value := range values {
		if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0o644); err != nil {
			errs = append(errs, fmt.Errorf("restore %s=%s: %w", key, value, err))
		}
	}
	return errors.Join(errs...)
}

// lock allows one start or removal of a node at a time. The file is next to Dir, so that a purge does not remove it.
func lock(ctx context.Context, c Config) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(c.Dir), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(c.Dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	group := &proc.Group{}
	err = group.Until(ctx, "another command that starts or removes a node to end", upLimit, func(context.Context) error {
		return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	})
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
