package node

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func config(dir, nodes, pods string) Config {
	return Config{Dir: dir, Nodes: netip.MustParsePrefix(nodes), Pods: netip.MustParsePrefix(pods), Service: netip.MustParsePrefix("10.96.0.0/16")}
}

func TestNodesHaveTheirOwnAddressesAndFolders(t *testing.T) {
	c := config("/state", "10.99.0.0/29", "10.244.0.0/21")
	for _, test := range []struct {
		node               Node
		ip, peer, pods     string
		folder, cgroupTail string
	}{
		{c.first(), "10.99.0.2", "10.99.0.1", "10.244.0.0/24", "/state/log", ""},
		{Node{Config: c, Name: "b", Index: 1}, "10.99.0.3", "10.99.0.2", "10.244.1.0/24", "/state/nodes/b/log", "-2"},
		{Node{Config: c, Name: "e", Index: 4}, "10.99.0.6", "10.99.0.2", "10.244.4.0/24", "/state/nodes/e/log", "-5"},
		{config("/state", "10.99.0.0/30", "10.244.0.0/26").first(), "10.99.0.2", "10.99.0.1", "10.244.0.0/26", "/state/log", ""},
	} {
		n := test.node
		if n.ip() != test.ip || n.peerIP() != test.peer || n.pods().String() != test.pods || n.path("log") != test.folder || n.cgroup() != c.id()+test.cgroupTail {
			t.Errorf("%s: got %s, %s, %s, %s, %s", n.Name, n.ip(), n.peerIP(), n.pods(), n.path("log"), n.cgroup())
		}
	}
}

func TestCapacityIsThatOfTheSmallerRange(t *testing.T) {
	for _, test := range []struct {
		nodes, pods string
		want        int
	}{
		{"10.99.0.0/29", "10.244.0.0/21", 5},
		{"10.99.0.0/28", "10.244.0.0/22", 4},
		{"10.99.0.0/30", "10.244.0.0/21", 1},
		{"10.99.0.0/29", "10.244.0.0/26", 1},
	} {
		if got := config("/state", test.nodes, test.pods).capacity(); got != test.want {
			t.Errorf("%s and %s: got %d, want %d", test.nodes, test.pods, got, test.want)
		}
	}
}

func TestFurtherNode(t *testing.T) {
	c := config("/state", "10.99.0.0/29", "10.244.0.0/22")
	existing := []*State{{Node: Node{Config: c, Name: "a", Index: 1}}, {Node: Node{Config: c, Name: "c", Index: 3}}}
	full := append(existing, &State{Node: Node{Config: c, Name: "b", Index: 2}})
	for _, test := range []struct {
		name     string
		existing []*State
		want     string
		index    int
		problem  string
	}{
		{"", nil, "vllmendpoint-local-2", 1, ""},
		{"", existing, "vllmendpoint-local-3", 2, ""},
		{"mine", existing, "mine", 2, ""},
		{"c", existing, "c", 3, ""},
		{"c", full, "c", 3, ""},
		{"d", full, "", 0, "addresses for 4 nodes"},
		{"vllmendpoint-local", nil, "", 0, "is the first node"},
		{"../x", nil, "", 0, "node name"},
	} {
		got, err := c.furtherNode(test.name, test.existing)
		switch {
		case test.problem != "":
			if err == nil || !strings.Contains(err.Error(), test.problem) {
				t.Errorf("%q: got %v, want an error with %q", test.name, err, test.problem)
			}
		case err != nil || got.Name != test.want || got.Index != test.index:
			t.Errorf("%q: got %s with index %d and %v, want %s with index %d", test.name, got.Name, got.Index, err, test.want, test.index)
		}
	}
}

func TestFurtherReadsTheSavedStates(t *testing.T) {
	c := config(t.TempDir(), "10.99.0.0/29", "10.244.0.0/21")
	for index, name := range map[int]string{2: "a", 1: "b"} {
		s := &State{Node: Node{Config: c, Name: name, Index: index, Taints: []corev1.Taint{{Key: "k", Effect: "NoExecute"}}}}
		if err := os.MkdirAll(s.path(), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := s.save(); err != nil {
			t.Fatal(err)
		}
	}
	// A start that was interrupted before it saved a state has nothing to undo.
	if err := os.MkdirAll(c.path(nodesFolder, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	all, err := c.further()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 2 || all[0].Name != "b" || all[1].Name != "a" || all[1].Taints[0].Key != "k" || all[1].Dir != c.Dir {
		t.Errorf("got %+v", all)
	}
}

func TestParseTaint(t *testing.T) {
	for text, want := range map[string]corev1.Taint{
		"gpu=true:NoSchedule":     {Key: "gpu", Value: "true", Effect: corev1.TaintEffectNoSchedule},
		"example.com/a:NoExecute": {Key: "example.com/a", Effect: corev1.TaintEffectNoExecute},
	} {
		if got, err := ParseTaint(text); err != nil || got != want {
			t.Errorf("%s: got %+v and %v", text, got, err)
		}
	}
	for _, text := range []string{"", "gpu", "gpu=true", "gpu=true:Never", ":NoSchedule", "a b:NoSchedule"} {
		if _, err := ParseTaint(text); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

func TestRemoveFilesKeepsTheImages(t *testing.T) {
	n := config(t.TempDir(), "10.99.0.0/29", "10.244.0.0/21").first()
	for _, dir := range []string{imageStore, "log", nodesFolder} {
		if err := os.MkdirAll(n.path(dir, "x"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.removeFiles(); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(n.path("*"))
	if err != nil || len(left) != 1 || filepath.Base(left[0]) != imageStore {
		t.Errorf("left: %v, %v", left, err)
	}
}
