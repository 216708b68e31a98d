package images

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// view is a mount of a file system that contains two folders. The kernel creates hard links only within one mount, and
// buildah's storage is mounted onto itself: another mount of the same file system.
type view struct {
	fd       int // of the mount's root
	from, to string
}

// sideBySide returns EXDEV if there is no such mount.
func sideBySide(from, to string) (*view, error) {
	table, err := mountTable()
	if err != nil {
		return nil, err
	}
	device, inFrom := table.locate(from)
	deviceTo, inTo := table.locate(to)
	if device != deviceTo {
		return nil, unix.EXDEV
	}
	for _, m := range table {
		a, okFrom := below(m.root, inFrom)
		b, okTo := below(m.root, inTo)
		if m.device != device || !okFrom || !okTo {
			continue
		}
		// A detached copy of the mount: mounts on top of its folders are not visible in it.
		fd, err := unix.OpenTree(unix.AT_FDCWD, m.point, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("open the mount %s: %w", m.point, err)
		}
		v := &view{fd, a, b}
		if v.right(from, to) {
			return v, nil
		}
		v.close() // another mount covers this mount point
	}
	return nil, unix.EXDEV
}

// right checks that the two folders are those at the usual paths.
func (v *view) right(from, to string) bool {
	same := func(path, inView string) bool {
		var a, b unix.Stat_t
		return unix.Stat(path, &a) == nil && unix.Fstatat(v.fd, inView, &b, 0) == nil && a.Dev == b.Dev && a.Ino == b.Ino
	}
	return same(from, v.from) && same(to, v.to)
}

func (v *view) close() { unix.Close(v.fd) }

type mountPoint struct{ device, root, point string }

type mountPoints []mountPoint

func mountTable() (mountPoints, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var table mountPoints
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 4 {
			table = append(table, mountPoint{f[2], unescape.Replace(f[3]), unescape.Replace(f[4])})
		}
	}
	return table, nil
}

// locate returns the device of a path, and its location in that file system.
func (t mountPoints) locate(path string) (device, inside string) {
	var best mountPoint
	rest := ""
	for _, m := range t { // the last of several mounts at one point applies
		if r, ok := below(m.point, path); ok && len(m.point) >= len(best.point) {
			best, rest = m, r
		}
	}
	return best.device, filepath.Join(best.root, rest)
}

// below returns a path relative to a folder.
func below(dir, path string) (rest string, ok bool) {
	rel, err := filepath.Rel(dir, path)
	return rel, err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}
