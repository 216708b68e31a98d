package images

import (
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestLowerDirsAreListedFromTheBottomUp(t *testing.T) {
	for _, test := range []struct {
		name   string
		mounts []mount.Mount
		want   []string
	}{
		{"one layer", []mount.Mount{{Type: "bind", Source: "/s/1/fs", Options: []string{"ro", "rbind"}}}, []string{"/s/1/fs"}},
		{"three layers", []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"index=off", "lowerdir=/s/3/fs:/s/2/fs:/s/1/fs"}}},
			[]string{"/s/1/fs", "/s/2/fs", "/s/3/fs"}},
	} {
		if got, err := lowerDirs(test.mounts); err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: got %v and %v, want %v", test.name, got, err, test.want)
		}
	}
	if _, err := lowerDirs([]mount.Mount{{Type: "overlay", Options: []string{"upperdir=/s/1/fs"}}}); err == nil {
		t.Error("a snapshot without lower folders gave no error")
	}
}

func TestGroupCollectsTheNamesOfAnImage(t *testing.T) {
	a := ocispec.Descriptor{Digest: digest.FromString("a")}
	b := ocispec.Descriptor{Digest: digest.FromString("b")}
	targets, names := group([]images.Image{
		{Name: "localhost/a:1", Target: a}, {Name: "sha256:0123", Target: a}, {Name: "docker.io/library/a:1", Target: a},
		{Name: "sha256:4567", Target: b}, {Name: "b:1", Target: b},
	})
	if len(targets) != 2 || targets[0].Digest != a.Digest || targets[1].Digest != b.Digest {
		t.Errorf("targets: got %v", targets)
	}
	if !slices.Equal(names[a.Digest], []string{"localhost/a:1", "docker.io/library/a:1"}) || !slices.Equal(names[b.Digest], []string{"b:1"}) {
		t.Errorf("names: got %v", names)
	}
}
