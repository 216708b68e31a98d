package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"os"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// The operator has rendered the file for an endpoint of this name in this namespace, so that both create the same
// children.
const (
	placeholderName      = "name-placeholder"
	placeholderNamespace = "namespace-placeholder"

	digest = "ideal/digest" // annotation on every child: digest of the written object
)

// template is one child, with placeholders.
type template struct {
	kind schema.GroupVersionKind
	text []byte
}

func load(path string) ([]template, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var items []json.RawMessage
	if err := json.Unmarshal(data, &items); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	templates := make([]template, 0, len(items))
	for _, item := range items {
		var head struct{ APIVersion, Kind string }
		if err := json.Unmarshal(item, &head); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		templates = append(templates, template{schema.FromAPIVersionAndKind(head.APIVersion, head.Kind), item})
	}
	return templates, nil
}

// render creates the child of an endpoint; the scheme has its type.
func (t template) render(scheme *runtime.Scheme, name, namespace string) (client.Object, error) {
	made, err := scheme.New(t.kind)
	if err != nil {
		return nil, err
	}
	child, ok := made.(client.Object)
	if !ok {
		return nil, fmt.Errorf("%s is no object", t.kind)
	}
	text := bytes.ReplaceAll(t.text, []byte(placeholderNamespace), []byte(namespace))
	text = bytes.ReplaceAll(text, []byte(placeholderName), []byte(name))
	if err := json.Unmarshal(text, child); err != nil {
		return nil, err
	}
	child.SetNamespace(namespace)
	annotations := map[string]string{digest: fmt.Sprintf("%x", sha256.Sum256(text))[:16]}
	maps.Copy(annotations, child.GetAnnotations())
	child.SetAnnotations(annotations)
	return child, nil
}
