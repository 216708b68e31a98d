package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cgroupRoots lists the mount points of control groups: one folder per controller with version 1, one with version 2,
// both on hybrid machines.
func cgroupRoots() ([]string, error) {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var roots []string
	for _, line := range strings.Split(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) > 2 && (f[2] == "cgroup" || f[2] == "cgroup2") {
			roots = append(roots, f[1])
		}
	}
	if len(roots) == 0 {
		return nil, errors.New("no control groups are mounted below /sys/fs/cgroup; the kubelet requires them")
	}
	return roots, nil
}

// otherClusters reports whether clusters of other folders run on this machine.
func otherClusters(id string) (bool, error) {
	roots, err := cgroupRoots()
	if err != nil {
		return false, err
	}
	for _, root := range roots {
		found, err := filepath.Glob(filepath.Join(root, namePrefix+"*"))
		if err != nil {
			return false, err
		}
		for _, f := range found {
			if filepath.Base(f) != id {
				return true, nil
			}
		}
	}
	return false, nil
}

// makeCgroups creates NAME for the pods, and NAME/daemons, to which it moves pid.
func makeCgroups(name string, pid int) error {
	roots, err := cgroupRoots()
	if err != nil {
		return err
	}
	for _, root := range roots {
		parent := root
		for _, dir := range []string{name, "daemons"} {
			child := filepath.Join(parent, dir)
			if err := os.Mkdir(child, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make a control group: %w", err)
			}
			// With version 1, a new cpuset has no processors and no memory, and accepts no task until it has.
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				if b, err := os.ReadFile(filepath.Join(parent, file)); err == nil {
					_ = os.WriteFile(filepath.Join(child, file), b, 0o644)
				}
			}
			parent = child
		}
		if err := os.WriteFile(filepath.Join(parent, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644); err != nil {
			return fmt.Errorf("enter the control group %s: %w", parent, err)
		}
	}
	return nil
}

// removeCgroups removes the control groups that match a pattern, and their children. It retries, because the kernel needs
// a moment after their processes were killed.
func removeCgroups(pattern string) error {
	roots, err := cgroupRoots()
	if err != nil {
		return err
	}
	var dirs []string
	for _, root := range roots {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return err
		}
		dirs = append(dirs, found...)
	}
	for _, dir := range dirs {
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			err := removeTree(dir)
			if err == nil {
				break
			}
			if !errors.Is(err, syscall.EBUSY) || time.Now().After(deadline) {
				return fmt.Errorf("remove the control group %s: %w", dir, err)
			}
		}
	}
	return nil
}

// removeTree removes folders from the leaves up; the files in them belong to the kernel.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return syscall.Rmdir(dir)
}
