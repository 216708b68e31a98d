package images

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// tar lists all attributes that an image layer can have.
const tar = `cd "$0" && tar --sort=name --xattrs --xattrs-include='*' --pax-option=delete=atime,delete=ctime --numeric-owner -cf - . | sha256sum`

func TestLinkLayer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("devices and trusted attributes need root")
	}
	base := t.TempDir()
	from, to := filepath.Join(base, "from"), filepath.Join(base, "to")
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(os.MkdirAll(filepath.Join(from, "opt/opaque"), 0o755))
	do(os.WriteFile(filepath.Join(from, "opt/file"), []byte("x"), 0o640))
	do(os.Chown(filepath.Join(from, "opt/file"), 12, 34))
	do(os.Link(filepath.Join(from, "opt/file"), filepath.Join(from, "same")))
	do(os.Symlink("/nowhere", filepath.Join(from, "symlink")))
	do(unix.Mknod(filepath.Join(from, "whiteout"), unix.S_IFCHR, 0))
	do(unix.Mkfifo(filepath.Join(from, "fifo"), 0o600))
	do(unix.Setxattr(filepath.Join(from, "opt/opaque"), "trusted.overlay.opaque", []byte("y"), 0))
	do(os.Chown(filepath.Join(from, "opt"), 56, 78))
	do(unix.Chmod(filepath.Join(from, "opt"), 0o1777))
	for _, dir := range []string{"opt/opaque", "opt", "."} { // a time that is not that of the copy
		do(unix.UtimesNano(filepath.Join(from, dir), []unix.Timespec{{Sec: 1}, {Sec: 2, Nsec: 3}}))
	}
	do(os.Mkdir(to, 0o700))
	// Mounted onto itself, like buildah's storage.
	do(unix.Mount(from, from, "", unix.MS_BIND, ""))
	defer unix.Unmount(from, unix.MNT_DETACH)

	do(linkLayer(from, to))

	want, err := exec.Command("sh", "-c", tar, from).Output()
	do(err)
	got, err := exec.Command("sh", "-c", tar, to).Output()
	do(err)
	if string(got) != string(want) {
		out, _ := exec.Command("ls", "-laR", base).Output()
		t.Errorf("the trees differ:\n%s", out)
	}
	var a, b unix.Stat_t
	do(unix.Stat(filepath.Join(from, "same"), &a))
	do(unix.Stat(filepath.Join(to, "opt/file"), &b))
	if a.Ino != b.Ino {
		t.Error("the file has been copied, not linked")
	}
}
