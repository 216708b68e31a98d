package images

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// AddProgram creates an image of one static program.
func (s *Store) AddProgram(ctx context.Context, name, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%w (hack/cluster/build.sh builds it)", err)
	}
	defer f.Close()
	sum, err := digest.FromReader(f)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	file := "/" + filepath.Base(path)
	// There is no tar file with a digest; any name that changes with the program is sufficient.
	diffID := digest.FromString(file + " " + sum.String())
	config := mustJSON(ocispec.Image{
		Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		Config:   ocispec.ImageConfig{Entrypoint: []string{file}},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}},
	})
	manifest := mustJSON(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    descriptor(ocispec.MediaTypeImageConfig, config),
		Layers:    []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: diffID, Size: info.Size()}},
	})
	_, err = s.add(ctx, image{
		names: []string{name}, manifest: manifest, mediaType: ocispec.MediaTypeImageManifest, config: config,
		layers: []layer{{diffID, func(dir string) error { return copyFile(path, filepath.Join(dir, file)) }}},
	})
	if err != nil {
		return fmt.Errorf("make the image %s: %w", name, err)
	}
	return nil
}

// copyFile copies instead of linking, because the program may be rewritten in place.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
