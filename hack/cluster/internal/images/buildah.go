package images

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Load loads an image from buildah's storage into the node, under the names of buildah and of Kubernetes (op:dev is
// localhost/op:dev to buildah and docker.io/library/op:dev to Kubernetes).
func (s *Store) Load(ctx context.Context, name string) error {
	begun := time.Now()
	b, err := openBuildah()
	if err != nil {
		return err
	}
	img, err := b.find(name)
	if err != nil {
		return err
	}
	added, err := s.add(ctx, img)
	if err != nil {
		return fmt.Errorf("load %s: %w", name, err)
	}
	fmt.Printf("%s: %d of %d layers were new, %.1f s\n", strings.Join(img.names, ", "), added, len(img.layers), time.Since(begun).Seconds())
	return nil
}

// buildah is the storage of buildah, podman and similar tools: JSON files, and one folder per layer.
type buildah struct {
	root   string
	images []struct {
		ID    string
		Names []string
		Layer string
	}
	layers []struct {
		ID         string
		Parent     string
		DiffDigest digest.Digest `json:"diff-digest"`
	}
}

func openBuildah() (*buildah, error) {
	out, err := exec.Command("buildah", "info", "--format", "{{.store.GraphDriverName}} {{.store.GraphRoot}}").Output()
	if err != nil {
		return nil, fmt.Errorf("read the location of buildah's storage: %w (is buildah installed?)", err)
	}
	driver, root, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	if driver != "overlay" {
		return nil, fmt.Errorf("buildah's storage driver is %q; only overlay keeps layers as folders: set driver = \"overlay\" in storage.conf", driver)
	}
	b := &buildah{root: root}
	if err := readJSON(filepath.Join(root, "overlay-images", "images.json"), &b.images); err != nil {
		return nil, err
	}
	return b, readJSON(filepath.Join(root, "overlay-layers", "layers.json"), &b.layers)
}

func readJSON(path string, into any) error {
	bytes, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read buildah's storage: %w", err)
	}
	if err := json.Unmarshal(bytes, into); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// find returns the image that buildah would find by this name.
func (b *buildah) find(name string) (image, error) {
	normal, err := reference.ParseDockerRef(name)
	if err != nil {
		return image{}, fmt.Errorf("image name %q: %w", name, err)
	}
	short := reference.FamiliarString(normal)
	var known []string
	for _, candidate := range []string{normal.String(), "localhost/" + short} {
		for _, i := range b.images {
			known = append(known, i.Names...)
			if slices.Contains(i.Names, candidate) {
				names := slices.Compact([]string{candidate, normal.String()})
				img, err := b.image(i.ID, i.Layer)
				img.names = names
				return img, err
			}
		}
	}
	slices.Sort(known)
	return image{}, fmt.Errorf("buildah has no image %s; it has: %s", name, strings.Join(slices.Compact(known), ", "))
}

func (b *buildah) image(id, top string) (image, error) {
	none := image{}
	manifest, err := b.big(id, "manifest")
	if err != nil {
		return none, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return none, fmt.Errorf("read the manifest of image %s: %w", id, err)
	}
	if m.MediaType == "" {
		m.MediaType = ocispec.MediaTypeImageManifest // optional in OCI's format
	}
	config, err := b.big(id, m.Config.Digest.String())
	if err != nil {
		return none, err
	}
	var c ocispec.Image
	if err := json.Unmarshal(config, &c); err != nil {
		return none, fmt.Errorf("read the configuration of image %s: %w", id, err)
	}
	layers, err := b.chain(top, c.RootFS.DiffIDs)
	if err != nil {
		return none, fmt.Errorf("image %s: %w", id, err)
	}
	return image{manifest: manifest, mediaType: m.MediaType, config: config, layers: layers}, nil
}

// big reads a file that the storage keeps with an image; names with special characters are encoded.
func (b *buildah) big(id, key string) ([]byte, error) {
	file := key
	if strings.ContainsAny(key, ":/") {
		file = "=" + base64.StdEncoding.EncodeToString([]byte(key))
	}
	bytes, err := os.ReadFile(filepath.Join(b.root, "overlay-images", id, file))
	if err != nil {
		return nil, fmt.Errorf("read buildah's storage: %w", err)
	}
	return bytes, nil
}

// chain follows the layers from the top down, and compares them with the list of the configuration.
func (b *buildah) chain(top string, diffIDs []digest.Digest) ([]layer, error) {
	var layers []layer
	for id := top; id != ""; {
		at := slices.IndexFunc(b.layers, func(l struct {
			ID         string
			Parent     string
			DiffDigest digest.Digest `json:"diff-digest"`
		}) bool {
			return l.ID == id
		})
		if at < 0 {
			return nil, fmt.Errorf("buildah's storage lacks the layer %s", id)
		}
		diff := filepath.Join(b.root, "overlay", id, "diff")
		layers = append(layers, layer{b.layers[at].DiffDigest, func(dir string) error { return linkLayer(diff, dir) }})
		id = b.layers[at].Parent
	}
	slices.Reverse(layers)
	if len(layers) != len(diffIDs) {
		return nil, fmt.Errorf("buildah's storage has %d layers, its configuration %d", len(layers), len(diffIDs))
	}
	for i, want := range diffIDs {
		if got := layers[i].diffID; got != "" && got != want {
			return nil, errors.New("buildah's layers are not those of its configuration")
		}
		layers[i].diffID = want
	}
	return layers, nil
}
