package node

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// nodesFolder has one folder per further node, named like the node.
const nodesFolder = "nodes"

// podBits is the size of a node's block of the pod range, which can be smaller if the range is.
const podBits = 24

// Node identifies one node of a cluster.
type Node struct {
	Config
	Name   string
	Index  int            // 0: the first node
	Taints []corev1.Taint // at its registration
}

func (c Config) first() Node { return Node{Config: c, Name: Name} }

// path is a path in the node's folder, which is the cluster's for the first node.
func (n Node) path(parts ...string) string {
	home := n.Dir
	if n.Index > 0 {
		home = filepath.Join(n.Dir, nodesFolder, n.Name)
	}
	return filepath.Join(append([]string{home}, parts...)...)
}

func (n Node) statePath() string { return n.path("state.json") }

// readyPath exists once a start is complete.
func (n Node) readyPath() string { return n.path("ready") }

// cgroup is the name of the node's control groups.
func (n Node) cgroup() string {
	if n.Index == 0 {
		return n.id()
	}
	return fmt.Sprintf("%s-%d", n.id(), n.Index+1)
}

// link is the first node's end of the link to a further node.
func (n Node) link() string { return fmt.Sprintf("node%d", n.Index+1) }

func (n Node) ip() string { return offset(n.Nodes.Addr(), 2+n.Index).String() }

// peerIP is the router of the node: the host for the first node, and the first node for the others.
func (n Node) peerIP() string {
	if n.Index == 0 {
		return n.hostIP()
	}
	return n.first().ip()
}

// pods is the node's block of the pod range.
func (n Node) pods() netip.Prefix {
	bits := max(podBits, n.Pods.Bits())
	return netip.PrefixFrom(offset(n.Pods.Addr(), n.Index<<(32-bits)), bits)
}

func offset(a netip.Addr, by int) netip.Addr {
	b := a.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(by))
	return netip.AddrFrom4(b)
}

// capacity is the number of nodes for which the ranges have addresses.
func (c Config) capacity() int {
	addresses := 1<<(32-c.Nodes.Bits()) - 3 // without the network, the host and the broadcast address
	blocks := 1 << max(0, podBits-c.Pods.Bits())
	return min(addresses, blocks)
}

// furtherNode returns the existing node with this name, or a new one with the lowest free index. An empty name selects a
// free default.
func (c Config) furtherNode(name string, existing []*State) (Node, error) {
	index := 1
	for slices.ContainsFunc(existing, func(s *State) bool { return s.Index == index }) {
		index++
	}
	if name == "" {
		name = fmt.Sprintf("%s-%d", Name, index+1)
	}
	if problems := validation.IsDNS1123Label(name); len(problems) > 0 {
		return Node{}, fmt.Errorf("node name %q: %s", name, strings.Join(problems, "; "))
	}
	if name == Name {
		return Node{}, fmt.Errorf("%s is the first node, which `cluster up` starts", name)
	}
	for _, s := range existing {
		if s.Name == name {
			return s.Node, nil
		}
	}
	if index >= c.capacity() {
		return Node{}, fmt.Errorf("VLLMENDPOINT_NODE_CIDR=%s and VLLMENDPOINT_POD_CIDR=%s have addresses for %d nodes: remove a node, or start the cluster with larger ranges",
			c.Nodes, c.Pods, c.capacity())
	}
	return Node{Config: c, Name: name, Index: index}, nil
}

// further returns the states of all nodes except the first, by index. It includes nodes that were killed.
func (c Config) further() ([]*State, error) {
	files, err := filepath.Glob(c.path(nodesFolder, "*", "state.json"))
	if err != nil {
		return nil, err
	}
	var all []*State
	for _, file := range files {
		s, err := load(filepath.Dir(file))
		if err != nil {
			return nil, err
		}
		if s != nil {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b *State) int { return a.Index - b.Index })
	return all, nil
}

// ParseTaint reads KEY=VALUE:EFFECT or KEY:EFFECT.
func ParseTaint(text string) (corev1.Taint, error) {
	pair, effect, _ := strings.Cut(text, ":")
	key, value, _ := strings.Cut(pair, "=")
	t := corev1.Taint{Key: key, Value: value, Effect: corev1.TaintEffect(effect)}
	effects := []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute}
	if len(validation.IsQualifiedName(key)) > 0 || len(validation.IsValidLabelValue(value)) > 0 || !slices.Contains(effects, t.Effect) {
		return t, fmt.Errorf("taint %q: want KEY=VALUE:EFFECT or KEY:EFFECT, with one of the effects %v", text, effects)
	}
	return t, nil
}

// removeFiles empties the node's folder, except for the images.
func (n Node) removeFiles() error {
	entries, err := os.ReadDir(n.path())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != imageStore {
			if err := os.RemoveAll(n.path(e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
