package pki

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
)

func TestJoinSignsWithTheAuthorityOfTheOtherFolder(t *testing.T) {
	authority, path := filepath.Join(t.TempDir(), "first"), filepath.Join(t.TempDir(), "second")
	if _, err := New(authority); err != nil {
		t.Fatal(err)
	}
	d, err := Join(authority, path)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Issue("kubelet", Subject{User: "system:node:second", Groups: []string{"system:nodes"}, Names: []string{"second"}}); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(authority, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	pair, err := tls.LoadX509KeyPair(d.File("kubelet.crt"), d.File("kubelet.key"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "second"}); err != nil {
		t.Error(err)
	}
	if err := d.Kubeconfig(filepath.Join(path, "kubeconfig"), "https://10.99.0.2:6443", "kubelet"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(d.File("ca.key")); err == nil {
		t.Error("the authority's key has been copied")
	}
}
