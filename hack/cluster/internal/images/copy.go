package images

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// CopyFrom adds all images of another containerd on this machine. The files of the layers are linked, so they need no
// space on the disk, and each store can remove its own without an effect on the other. It returns the number of images.
func (s *Store) CopyFrom(ctx context.Context, from *Store) (int, error) {
	ctx = namespaces.WithNamespace(ctx, "k8s.io")
	list, err := from.client.ImageService().List(ctx)
	if err != nil {
		return 0, fmt.Errorf("list the images to copy: %w", err)
	}
	targets, names := group(list)
	for _, target := range targets {
		if err := s.copyImage(ctx, from, names[target.Digest], target); err != nil {
			return 0, fmt.Errorf("copy the image %s: %w", names[target.Digest][0], err)
		}
	}
	return len(targets), nil
}

// group lists the images that have a name, without CRI's records by ID, and the names of each.
func group(list []images.Image) (targets []ocispec.Descriptor, names map[digest.Digest][]string) {
	names = map[digest.Digest][]string{}
	for _, i := range list {
		if strings.HasPrefix(i.Name, "sha256:") {
			continue
		}
		if names[i.Target.Digest] == nil {
			targets = append(targets, i.Target)
		}
		names[i.Target.Digest] = append(names[i.Target.Digest], i.Name)
	}
	return targets, names
}

func (s *Store) copyImage(ctx context.Context, from *Store, names []string, target ocispec.Descriptor) error {
	// A lease protects the view of the layers, and the layers with it, and removes the view if this process is killed.
	leased, release, err := from.client.WithLease(ctx, leases.WithRandomID(), leases.WithExpiration(time.Hour))
	if err != nil {
		return fmt.Errorf("get a lease from containerd: %w", err)
	}
	defer func() { _ = release(context.WithoutCancel(leased)) }()
	img, done, err := from.open(leased, target)
	if err != nil {
		return err
	}
	defer done()
	img.names = names
	_, err = s.add(ctx, img)
	return err
}

// open reads an image; its layers are valid until done is called.
func (s *Store) open(ctx context.Context, target ocispec.Descriptor) (img image, done func(), err error) {
	store := s.client.ContentStore()
	img = image{mediaType: target.MediaType}
	if img.manifest, err = content.ReadBlob(ctx, store, target); err != nil {
		return img, nil, err
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(img.manifest, &manifest); err != nil {
		return img, nil, fmt.Errorf("read the manifest: %w", err)
	}
	if img.config, err = content.ReadBlob(ctx, store, manifest.Config); err != nil {
		return img, nil, err
	}
	var config ocispec.Image
	if err := json.Unmarshal(img.config, &config); err != nil {
		return img, nil, fmt.Errorf("read the configuration: %w", err)
	}
	snapshots, key := s.client.SnapshotService(snapshotter), "copy-"+uuid.NewString()
	mounts, err := snapshots.View(ctx, key, identity.ChainID(config.RootFS.DiffIDs).String())
	if err != nil {
		return img, nil, fmt.Errorf("open the layers: %w", err)
	}
	done = func() { _ = snapshots.Remove(context.WithoutCancel(ctx), key) } // the lease removes it anyway
	dirs, err := lowerDirs(mounts)
	if err == nil && len(dirs) != len(config.RootFS.DiffIDs) {
		err = fmt.Errorf("the snapshot has %d folders for %d layers", len(dirs), len(config.RootFS.DiffIDs))
	}
	if err != nil {
		done()
		return img, nil, err
	}
	for i, id := range config.RootFS.DiffIDs {
		img.layers = append(img.layers, layer{id, func(dir string) error { return linkLayer(dirs[i], dir) }})
	}
	return img, done, nil
}

// lowerDirs lists the folders of a read-only snapshot, from the bottom up.
func lowerDirs(mounts []mount.Mount) ([]string, error) {
	if len(mounts) == 1 && mounts[0].Type == "bind" {
		return []string{mounts[0].Source}, nil
	}
	for _, m := range mounts {
		for _, option := range m.Options {
			if list, ok := strings.CutPrefix(option, "lowerdir="); ok {
				dirs := strings.Split(list, ":")
				slices.Reverse(dirs)
				return dirs, nil
			}
		}
	}
	return nil, fmt.Errorf("containerd gave a snapshot without lower folders: %v", mounts)
}
