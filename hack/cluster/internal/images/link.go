package images

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// linkLayer copies from into the empty folder to: it creates new folders, and hard links for files, symbolic links,
// devices and whiteouts, which take neither time nor disk space. Neither folder is written to afterwards: both are
// lower layers of overlays, which copy a file before they change it.
func linkLayer(from, to string) error {
	v, err := sideBySide(from, to)
	if err == nil {
		defer v.close()
		return v.link(from, to, "")
	}
	if !errors.Is(err, unix.EXDEV) {
		return err
	}
	fmt.Printf("copying %s: it lies on another file system than %s, so its files cannot be linked\n", from, to)
	out, err := exec.Command("cp", "-a", "--", from+"/.", to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("copy %s: %w\n%s", from, err, out)
	}
	return nil
}

// link copies the folder dir below from and to.
func (v *view) link(from, to, dir string) error {
	entries, err := os.ReadDir(filepath.Join(from, dir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !e.IsDir() {
			// Without flags, linkat links the symbolic link itself and not its target.
			if err := unix.Linkat(v.fd, filepath.Join(v.from, path), v.fd, filepath.Join(v.to, path), 0); err != nil {
				return fmt.Errorf("link %s from %s to %s: %w", path, from, to, err)
			}
			continue
		}
		if err := os.Mkdir(filepath.Join(to, path), 0o700); err != nil {
			return err
		}
		if err := v.link(from, to, path); err != nil {
			return err
		}
	}
	// Last, because creating the entries has changed the folder's times.
	return copyAttributes(filepath.Join(from, dir), filepath.Join(to, dir))
}

// copyAttributes copies owner, mode, extended attributes and times of a folder.
func copyAttributes(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return fmt.Errorf("read %s: %w", from, err)
	}
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil { // after the owner: a change of owner may clear bits
		return fmt.Errorf("set the mode of %s: %w", to, err)
	}
	if err := copyXattrs(from, to); err != nil {
		return err
	}
	times := []unix.Timespec{{Sec: st.Atim.Sec, Nsec: st.Atim.Nsec}, {Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set the times of %s: %w", to, err)
	}
	return nil
}

func copyXattrs(from, to string) error {
	names := make([]byte, 64<<10) // the kernel's limit
	n, err := unix.Llistxattr(from, names)
	if err != nil {
		return fmt.Errorf("list the attributes of %s: %w", from, err)
	}
	for _, name := range strings.Split(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		if name == "trusted.overlay.redirect" {
			return fmt.Errorf("%s is a folder that overlayfs has renamed: such a layer cannot be taken apart", from)
		}
		value := make([]byte, 64<<10)
		size, err := unix.Lgetxattr(from, name, value)
		if err == nil {
			err = unix.Lsetxattr(to, name, value[:size], 0)
		}
		if err != nil {
			return fmt.Errorf("copy the attribute %s of %s: %w", name, from, err)
		}
	}
	return nil
}
