// Package images adds images to the node's containerd without a tar stream: the files of a layer are linked or copied
// directly into a snapshot, and only manifest and configuration are stored as blobs. Such images cannot be pushed.
package images

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const snapshotter = "overlayfs"

// Labels that containerd's garbage collector follows: image > manifest > configuration > top snapshot > its parents.
const (
	gcContent  = "containerd.io/gc.ref.content.config"
	gcSnapshot = "containerd.io/gc.ref.snapshot." + snapshotter
)

// Store is the node's containerd, in the namespace that the kubelet uses.
type Store struct{ client *client.Client }

// Connect fails unless containerd and its CRI service answer.
func Connect(ctx context.Context, socket string) (*Store, error) {
	c, err := client.New(socket, client.WithDefaultNamespace("k8s.io"), client.WithTimeout(time.Second))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", socket, err)
	}
	s := &Store{c}
	if _, err := s.runtime().Version(ctx, &cri.VersionRequest{}); err != nil {
		c.Close()
		return nil, fmt.Errorf("query containerd's CRI service: %w", err)
	}
	return s, nil
}

// Close ends the connection.
func (s *Store) Close() { s.client.Close() }

func (s *Store) conn() grpc.ClientConnInterface { return s.client.Conn().(grpc.ClientConnInterface) }

func (s *Store) runtime() cri.RuntimeServiceClient { return cri.NewRuntimeServiceClient(s.conn()) }

// RemovePods removes containerd's records of the pods of an earlier node, which were kept together with the images.
func (s *Store) RemovePods(ctx context.Context) error {
	list, err := s.runtime().ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list the pods of an earlier node: %w", err)
	}
	for _, pod := range list.Items {
		// Stopping removes the network, which no longer exists: only the removal of the pod must succeed.
		_, _ = s.runtime().StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod.Id})
		if _, err := s.runtime().RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod.Id}); err != nil {
			return fmt.Errorf("remove the pod %s of an earlier node: %w", pod.GetMetadata().GetName(), err)
		}
	}
	return nil
}

// image is the input of add.
type image struct {
	names     []string // normalised
	manifest  []byte
	mediaType string
	config    []byte
	layers    []layer // from the bottom up
}

// layer is one layer, with a function that puts its files into an empty folder.
type layer struct {
	diffID digest.Digest
	fill   func(dir string) error
}

// add stores an image and skips existing layers. It returns the number of new layers.
func (s *Store) add(ctx context.Context, img image) (int, error) {
	ctx = namespaces.WithNamespace(ctx, "k8s.io")
	// A lease protects the layers from garbage collection until the image refers to them.
	ctx, release, err := s.client.WithLease(ctx, leases.WithRandomID(), leases.WithExpiration(time.Hour))
	if err != nil {
		return 0, fmt.Errorf("get a lease from containerd: %w", err)
	}
	defer func() { _ = release(context.WithoutCancel(ctx)) }() // it expires anyway
	top, added, err := s.addLayers(ctx, img.layers)
	if err != nil {
		return added, err
	}
	config := descriptor(ocispec.MediaTypeImageConfig, img.config)
	if err := s.addBlob(ctx, config, img.config, gcSnapshot, top); err != nil {
		return added, err
	}
	manifest := descriptor(img.mediaType, img.manifest)
	if err := s.addBlob(ctx, manifest, img.manifest, gcContent, config.Digest.String()); err != nil {
		return added, err
	}
	for _, name := range img.names {
		if err := s.name(ctx, name, manifest); err != nil {
			return added, err
		}
	}
	return added, nil
}

func descriptor(mediaType string, blob []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
}

func (s *Store) addLayers(ctx context.Context, layers []layer) (top string, added int, err error) {
	snapshots := s.client.SnapshotService(snapshotter)
	lease, _ := leases.FromContext(ctx)
	var diffIDs []digest.Digest
	for _, l := range layers {
		diffIDs = append(diffIDs, l.diffID)
		chain := identity.ChainID(diffIDs).String()
		// Claim the layer before checking for it, so that it cannot be collected in between.
		resource := leases.Resource{ID: chain, Type: "snapshots/" + snapshotter}
		if err := s.client.LeasesService().AddResource(ctx, leases.Lease{ID: lease}, resource); err != nil {
			return "", added, fmt.Errorf("claim the layer %s: %w", chain, err)
		}
		if _, err := snapshots.Stat(ctx, chain); errdefs.IsNotFound(err) {
			if err := s.addLayer(ctx, l, top, chain); err != nil {
				return "", added, fmt.Errorf("add the layer %s: %w", l.diffID, err)
			}
			added++
		} else if err != nil {
			return "", added, err
		}
		top = chain
	}
	return top, added, nil
}

func (s *Store) addLayer(ctx context.Context, l layer, parent, chain string) error {
	snapshots := s.client.SnapshotService(snapshotter)
	key := "load-" + uuid.NewString()
	mounts, err := snapshots.Prepare(ctx, key, parent)
	if err != nil {
		return err
	}
	dir, err := upperDir(mounts)
	if err == nil {
		err = l.fill(dir)
	}
	if err == nil {
		err = snapshots.Commit(ctx, chain, key)
	}
	if err != nil {
		_ = snapshots.Remove(context.WithoutCancel(ctx), key) // the rest is collected with the lease
		if errdefs.IsAlreadyExists(err) {
			return nil // another load has added it
		}
	}
	return err
}

// upperDir is the folder with the files of a prepared snapshot.
func upperDir(mounts []mount.Mount) (string, error) {
	if len(mounts) == 1 && mounts[0].Type == "bind" {
		return mounts[0].Source, nil
	}
	for _, m := range mounts {
		for _, option := range m.Options {
			if dir, ok := strings.CutPrefix(option, "upperdir="); ok {
				return dir, nil
			}
		}
	}
	return "", fmt.Errorf("containerd gave a snapshot without an upper folder: %v", mounts)
}

func (s *Store) addBlob(ctx context.Context, d ocispec.Descriptor, blob []byte, label, value string) error {
	store := s.client.ContentStore()
	labels := map[string]string{label: value}
	err := content.WriteBlob(ctx, store, "load-"+d.Digest.String(), bytes.NewReader(blob), d, content.WithLabels(labels))
	if err == nil { // an existing blob keeps its labels
		_, err = store.Update(ctx, content.Info{Digest: d.Digest, Labels: labels}, "labels."+label)
	}
	if err != nil {
		return fmt.Errorf("store the blob %s: %w", d.Digest, err)
	}
	return nil
}

// name makes an image visible to the kubelet. The record has no label: CRI adds its own label, and a record by ID, when
// it receives the event.
func (s *Store) name(ctx context.Context, name string, target ocispec.Descriptor) error {
	service := s.client.ImageService()
	record := images.Image{Name: name, Target: target}
	old, err := service.Get(ctx, name)
	switch {
	case errdefs.IsNotFound(err):
		_, err = service.Create(ctx, record)
	case err == nil && old.Target.Digest == target.Digest:
		return s.visible(ctx, name)
	case err == nil:
		_, err = service.Update(ctx, record)
	}
	if err != nil {
		return fmt.Errorf("name the image %s: %w", name, err)
	}
	if err := s.visible(ctx, name); err != nil {
		return err
	}
	return s.dropUnnamed(ctx, old.Target.Digest)
}

// visible waits until CRI lists the image.
func (s *Store) visible(ctx context.Context, name string) error {
	want, err := s.client.ImageService().Get(ctx, name)
	if err != nil {
		return err
	}
	config, err := want.Config(ctx, s.client.ContentStore(), platforms.Default())
	if err != nil {
		return fmt.Errorf("read the image %s: %w", name, err)
	}
	ask := &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		got, err := cri.NewImageServiceClient(s.conn()).ImageStatus(ctx, ask)
		if err != nil {
			return fmt.Errorf("query CRI for the image %s: %w", name, err)
		}
		if got.Image != nil && got.Image.Id == config.Digest.String() {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("CRI does not see the image %s 10 s after it was stored; see its log for the cause", name)
		}
	}
}

// dropUnnamed removes CRI's record by ID of an image without a name, so that its layers can be collected. Running
// containers keep their snapshots.
func (s *Store) dropUnnamed(ctx context.Context, target digest.Digest) error {
	if target == "" {
		return nil
	}
	list, err := s.client.ImageService().List(ctx, "target.digest=="+target.String())
	if err != nil {
		return err
	}
	for _, i := range list {
		if !strings.HasPrefix(i.Name, "sha256:") {
			return nil
		}
	}
	for _, i := range list {
		if err := s.client.ImageService().Delete(ctx, i.Name); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
