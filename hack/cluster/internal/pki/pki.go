// Package pki creates the cluster's certificates, keys and kubeconfig files. Every start of the cluster creates new
// ones.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// ContextName is the context of every kubeconfig written here.
const ContextName = "vllmendpoint-local"

const lifetime = 365 * 24 * time.Hour

// Dir is a folder with the certificate of an authority (ca.crt) and certificates that it has signed. New also creates the
// authority's key (ca.key).
type Dir struct {
	Path string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Subject is the subject of a certificate. Kubernetes reads User and Groups from it.
type Subject struct {
	User   string
	Groups []string
	IPs    []net.IP // with names, the certificate is also valid for a server
	Names  []string
}

// New creates the folder and an authority in it.
func New(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := base("vllmendpoint-local")
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the certificate authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	d := &Dir{Path: path, cert: cert, key: key}
	return d, d.write("ca", der, key)
}

// Join creates a folder for certificates that are signed by the authority of another folder.
func Join(authority, path string) (*Dir, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(authority, "ca.crt"), filepath.Join(authority, "ca.key"))
	if err != nil {
		return nil, fmt.Errorf("read the certificate authority: %w", err)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	d := &Dir{Path: path, cert: pair.Leaf, key: pair.PrivateKey.(*ecdsa.PrivateKey)}
	return d, d.writePEM("ca.crt", "CERTIFICATE", pair.Leaf.Raw, 0o644)
}

// Issue signs a certificate and writes NAME.crt and NAME.key.
func (d *Dir) Issue(name string, s Subject) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := base(s.User)
	template.Subject.Organization = s.Groups
	template.IPAddresses, template.DNSNames = s.IPs, s.Names
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(s.IPs)+len(s.Names) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, d.cert, key.Public(), d.key)
	if err != nil {
		return fmt.Errorf("sign the certificate %s: %w", name, err)
	}
	return d.write(name, der, key)
}

// Key creates a key pair without a certificate (NAME.key, NAME.pub) for service-account tokens.
func (d *Dir) Key(name string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	if err := d.writePEM(name+".pub", "PUBLIC KEY", pub, 0o644); err != nil {
		return err
	}
	return d.writeKey(name, key)
}

// Kubeconfig writes a kubeconfig file for server with the named certificate, all embedded.
func (d *Dir) Kubeconfig(file, server, name string) error {
	read := func(f string) []byte {
		b, err := os.ReadFile(filepath.Join(d.Path, f))
		if err != nil {
			panic(err) // Issue has just written it
		}
		return b
	}
	c := clientcmdapi.NewConfig()
	c.Clusters[ContextName] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: read("ca.crt")}
	c.AuthInfos[name] = &clientcmdapi.AuthInfo{
		ClientCertificateData: read(name + ".crt"), ClientKeyData: read(name + ".key"),
	}
	c.Contexts[ContextName] = &clientcmdapi.Context{Cluster: ContextName, AuthInfo: name, Namespace: "default"}
	c.CurrentContext = ContextName
	// By rename, so that a reader never sees an incomplete file.
	if err := clientcmd.WriteToFile(*c, file+".new"); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return os.Rename(file+".new", file)
}

// File is the path of a file in the folder.
func (d *Dir) File(name string) string { return filepath.Join(d.Path, name) }

func base(name string) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // the kernel has no random numbers, which is fatal
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(lifetime),
	}
}

func (d *Dir) write(name string, der []byte, key *ecdsa.PrivateKey) error {
	if err := d.writePEM(name+".crt", "CERTIFICATE", der, 0o644); err != nil {
		return err
	}
	return d.writeKey(name, key)
}

func (d *Dir) writeKey(name string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return d.writePEM(name+".key", "EC PRIVATE KEY", der, 0o600)
}

func (d *Dir) writePEM(file, kind string, der []byte, mode os.FileMode) error {
	return os.WriteFile(d.File(file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}
