package images

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// view is a mount of a file system in which two folders are seen side by side. The kernel links only within one mount,
// and buildah's storage is mounted onto itself: another mount, though the same file system.
type view struct {
	fd       int // of the mount's root
	from, to string
}

// sideBySide returns EXDEV where there is no such mount.
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
		// A copy of the mount that is in no namespace: what is mounted on top of its folders does not show in it.
		fd, err := unix.OpenTree(unix.AT_FDCWD, m.point, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("look into the mount %s: %w", m.point, err)
		}
		v := &view{fd, a, b}
		if v.right(from, to) {
			return v, nil
		}
		v.close() // another mount lies over this one's mount point
	}
	return nil, unix.EXDEV
}

// right checks that the two folders are those that the usual paths lead to.
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

// locate says on which device a path lies, and where in that file system.
func (t mountPoints) locate(path string) (device, inside string) {
	var best mountPoint
	rest := ""
	for _, m := range t { // of two mounts on one point, the later counts
		if r, ok := below(m.point, path); ok && len(m.point) >= len(best.point) {
			best, rest = m, r
		}
	}
	return best.device, filepath.Join(best.root, rest)
}

// below cuts a folder off a path.
func below(dir, path string) (rest string, ok bool) {
	rel, err := filepath.Rel(dir, path)
	return rel, err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}
