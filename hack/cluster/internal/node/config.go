// Package node runs Kubernetes nodes, each in its own namespaces: the exported functions run on the host, except Init
// and Supervise, which run inside. The first node also runs the control plane.
package node

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// Name is the first node's name in Kubernetes.
const Name = "vllmendpoint-local"

const apiPort = 6443

const namePrefix = "vllmendpoint-" // of control groups

// Config has the folders and addresses of a cluster.
type Config struct {
	Dir     string       // all state
	Bin     string       // the programs
	Nodes   netip.Prefix // the host (first address), the first node (second) and further nodes
	Pods    netip.Prefix // one block per node
	Service netip.Prefix
}

// State has the data that is needed to undo a start; it is written before each step.
type State struct {
	Node
	Boot    string            // boot ID: after a reboot, no process or setting is left
	Pid     int               // the node's init; its end terminates all processes of the node
	Started string            // its start time, because process IDs are reused
	Sysctls map[string]string // machine-wide settings before the kubelet changed them; only of the first node
}

// ConfigFromEnv reads the configuration from the environment.
func ConfigFromEnv() (Config, error) {
	executable, err := os.Executable()
	if err != nil {
		return Config{}, err
	}
	c := Config{Dir: os.Getenv("VLLMENDPOINT_CLUSTER_DIR"), Bin: filepath.Dir(executable)}
	if c.Dir == "" {
		cache := os.Getenv("VLLMENDPOINT_CACHE")
		if cache == "" {
			base, err := os.UserCacheDir()
			if err != nil {
				return c, fmt.Errorf("no cache folder: %w; set VLLMENDPOINT_CACHE", err)
			}
			cache = filepath.Join(base, "vllmendpoint")
		}
		c.Dir = filepath.Join(cache, "cluster")
	}
	if c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return c, err
	}
	for _, hidden := range hiddenInside {
		if strings.HasPrefix(c.Dir+"/", hidden+"/") {
			return c, fmt.Errorf("%s lies below %s, which the node replaces by its own: set VLLMENDPOINT_CLUSTER_DIR to another folder", c.Dir, hidden)
		}
	}
	ranges := []struct {
		env, otherwise string
		to             *netip.Prefix
		bits           int // the longest prefix that is large enough
	}{
		{"VLLMENDPOINT_NODE_CIDR", "10.99.0.0/29", &c.Nodes, 30},
		{"VLLMENDPOINT_POD_CIDR", "10.244.0.0/21", &c.Pods, 26},
		{"VLLMENDPOINT_SERVICE_CIDR", "10.96.0.0/16", &c.Service, 28},
	}
	for _, r := range ranges {
		text := os.Getenv(r.env)
		if text == "" {
			text = r.otherwise
		}
		p, err := netip.ParsePrefix(text)
		if err != nil || !p.Addr().Is4() || p.Bits() > r.bits {
			return c, fmt.Errorf("%s=%q: want an IPv4 range of at least a /%d, like %s", r.env, text, r.bits, r.otherwise)
		}
		*r.to = p.Masked()
	}
	return c, nil
}

// id distinguishes the objects that clusters of different folders create outside of them.
func (c Config) id() string {
	sum := sha256.Sum256([]byte(c.Dir))
	return namePrefix + hex.EncodeToString(sum[:])[:6]
}

func (c Config) hostLink() string { return "vep" + strings.TrimPrefix(c.id(), namePrefix) }
func (c Config) hostIP() string   { return c.Nodes.Addr().Next().String() }
func (c Config) server() string   { return fmt.Sprintf("https://%s:%d", c.first().ip(), apiPort) }

// dnsIP is the tenth address of the Services, as is usual.
func (c Config) dnsIP() string {
	a := c.Service.Addr()
	for range 10 {
		a = a.Next()
	}
	return a.String()
}

func (c Config) path(parts ...string) string {
	return filepath.Join(append([]string{c.Dir}, parts...)...)
}

// Kubeconfig is the administrator's kubeconfig file.
func (c Config) Kubeconfig() string { return c.path("kubeconfig") }

func (s *State) save() error {
	b, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.statePath()+".new", b, 0o600); err != nil {
		return fmt.Errorf("record the cluster's state: %w", err)
	}
	return os.Rename(s.statePath()+".new", s.statePath())
}

// load reads the state of the node with this folder. It returns nil without an error if nothing was started.
func load(dir string) (*State, error) {
	b, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s := &State{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, "state.json"), err)
	}
	return s, nil
}
