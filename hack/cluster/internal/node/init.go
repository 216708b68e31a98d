package node

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// File descriptors that up passes to the node's init.
const (
	goFD       = 3 // read: one byte when the host side is complete; end of file if up died before
	progressFD = 4 // write: lines that up prints
)

// hiddenInside lists folders that the node's mount namespace replaces by its own, so that the host's do not change.
var hiddenInside = []string{"/run", "/var/run", "/var/log", "/var/lib/cni", "/var/lib/kubelet"}

// bindMounts lists those of them that are stored with the state instead of in memory.
var bindMounts = map[string]string{"/var/log": "log/var", "/var/lib/cni": "cni-state", "/var/lib/kubelet": "kubelet"}

// Init is the first process of the node's PID namespace: it mounts, starts the supervisor and reaps orphans. It
// returns when the supervisor has ended; the kernel then kills the remaining processes of the namespace.
func Init(dir string) error {
	started := os.NewFile(goFD, "go")
	if _, err := io.ReadFull(started, make([]byte, 1)); err != nil {
		return fmt.Errorf("the process that started the node is gone: %w", err)
	}
	started.Close()
	state, err := load(dir)
	if err != nil {
		return err
	}
	if err := mounts(state.Node); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(state.Name)); err != nil {
		return err
	}
	supervisor, err := os.StartProcess("/proc/self/exe", []string{"cluster", "node-supervise", dir}, &os.ProcAttr{
		Env:   os.Environ(),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, os.NewFile(progressFD, "progress")},
	})
	if err != nil {
		return err
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return err
		case pid == supervisor.Pid:
			return fmt.Errorf("the supervisor ended (wait status %#x)", uint32(status))
		}
	}
}

func mounts(n Node) error {
	type mount struct {
		source, target, kind string
		flags                uintptr
		data                 string
	}
	list := []mount{
		// Mounts of the host are visible inside, and mounts from inside are not visible on the host. Inside they are
		// shared, as volumes with mount propagation require.
		{"", "/", "", unix.MS_SLAVE | unix.MS_REC, ""},
		{"", "/", "", unix.MS_SHARED | unix.MS_REC, ""},
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
	}
	for target, source := range bindMounts {
		list = append(list, mount{n.path(source), target, "", unix.MS_BIND, ""})
	}
	for _, m := range list {
		if m.flags&unix.MS_BIND != 0 {
			if err := os.MkdirAll(m.source, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", strings.TrimSpace(m.kind+" "+filepath.Clean(m.target)), err)
		}
	}
	return nil
}
