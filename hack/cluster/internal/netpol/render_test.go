package netpol

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"
)

// world: web and db in shop, job in other; agent is on the node's network, done has ended.
const world = `
- metadata: {name: web, namespace: shop, labels: {app: web}}
  spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}, {name: dns, containerPort: 53, protocol: UDP}]}]}
  status: {podIP: 10.0.0.1, phase: Running}
- metadata: {name: db, namespace: shop, labels: {app: db, tier: back}}
  spec: {containers: [{name: c, ports: [{name: http, containerPort: 9090}]}]}
  status: {podIP: 10.0.0.2, phase: Running}
- metadata: {name: job, namespace: other, labels: {app: job}}
  spec: {containers: [{name: c}], initContainers: [{name: side, ports: [{name: http, containerPort: 7070}]}]}
  status: {podIP: 10.0.0.3, phase: Pending}
- metadata: {name: agent, namespace: shop, labels: {app: web}}
  spec: {hostNetwork: true}
  status: {podIP: 10.9.0.1, phase: Running}
- metadata: {name: done, namespace: shop, labels: {app: web}}
  status: {podIP: 10.0.0.4, phase: Succeeded}
- metadata: {name: early, namespace: shop, labels: {app: web}}
`

const spaces = `
- metadata: {name: shop, labels: {team: a}}
- metadata: {name: other, labels: {team: b}}
`

func TestRender(t *testing.T) {
	const (
		toWeb   = "chain to_10_0_0_1 { # shop/web"
		fromWeb = "chain from_10_0_0_1 { # shop/web"
		self    = "ip saddr 10.0.0.1 return"
		selfOut = "ip daddr 10.0.0.1 return"
	)
	for _, test := range []struct {
		name, spec string
		chain      string
		want       []string // the chain's rules; nil: there is no such chain
	}{
		{"no policy for it", `{podSelector: {matchLabels: {app: none}}}`, toWeb, nil},
		{"deny all in", `{podSelector: {}}`, toWeb, []string{self, "drop"}},
		{"deny in leaves out alone", `{podSelector: {}}`, fromWeb, nil},
		{"deny out", `{podSelector: {}, policyTypes: [Egress]}`, fromWeb, []string{selfOut, "drop"}},
		{"deny out leaves in alone", `{podSelector: {}, policyTypes: [Egress]}`, toWeb, nil},
		{"egress rules make the type", `{podSelector: {}, egress: [{}]}`, fromWeb, []string{selfOut, "return", "drop"}},
		{"allow all", `{podSelector: {}, ingress: [{}]}`, toWeb, []string{self, "return", "drop"}},
		{"other namespaces' pods are not selected", `{podSelector: {}}`, "chain to_10_0_0_3 { # other/job", nil},
		{"pods of the same namespace", `{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`, toWeb,
			[]string{self, "ip saddr { 10.0.0.1, 10.0.0.2 } return", "drop"}},
		{"pods by expression", `{podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: tier, operator: Exists}]}}]}]}`, toWeb,
			[]string{self, "ip saddr { 10.0.0.2 } return", "drop"}},
		{"a namespace", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [a]}]}}]}]}`, toWeb,
			[]string{self, "ip saddr { 10.0.0.3 } return", "drop"}},
		{"pods of a namespace: both must match", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: job}}}]}]}`, toWeb,
			[]string{self, "ip saddr { 10.0.0.3 } return", "drop"}},
		{"peers that match nothing allow nothing", `{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: none}}}]}]}`, toWeb,
			[]string{self, "drop"}},
		{"address range with exceptions", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.2.0.0/16]}}]}]}`, toWeb,
			[]string{self, "ip saddr 10.0.0.0/8 ip saddr != 10.1.0.0/16 ip saddr != 10.2.0.0/16 return", "drop"}},
		{"a range of the other family allows nothing", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: "fd00::/8"}}]}]}`, toWeb,
			[]string{self, "drop"}},
		{"ports", `{podSelector: {}, ingress: [{ports: [{port: 80}, {port: 53, protocol: UDP}, {port: 1000, endPort: 2000}, {protocol: SCTP}]}]}`, toWeb,
			[]string{self, "tcp dport 80 return", "udp dport 53 return", "tcp dport 1000-2000 return", "meta l4proto sctp return", "drop"}},
		{"peers and ports", `{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}, {ipBlock: {cidr: 1.2.3.0/24}}], ports: [{port: 80}]}]}`, toWeb,
			[]string{self, "ip saddr 1.2.3.0/24 tcp dport 80 return", "ip saddr { 10.0.0.2 } tcp dport 80 return", "drop"}},
		{"a named port is the pod's own", `{podSelector: {}, ingress: [{ports: [{port: http}]}]}`, toWeb,
			[]string{self, "tcp dport 8080 return", "drop"}},
		{"a name counts with its protocol", `{podSelector: {}, ingress: [{ports: [{port: dns}, {port: dns, protocol: UDP}]}]}`, toWeb,
			[]string{self, "udp dport 53 return", "drop"}},
		{"outward, a named port is each peer's", `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}], ports: [{port: http}]}]}`, fromWeb,
			[]string{selfOut, "ip daddr { 10.0.0.1 } tcp dport 8080 return", "ip daddr { 10.0.0.2 } tcp dport 9090 return",
				"ip daddr { 10.0.0.3 } tcp dport 7070 return", "drop"}},
		{"two rules", `{podSelector: {}, ingress: [{ports: [{port: 1}]}, {ports: [{port: 2}]}]}`, toWeb,
			[]string{self, "tcp dport 1 return", "tcp dport 2 return", "drop"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			policy := &networking.NetworkPolicy{}
			policy.Name, policy.Namespace = "p", "shop"
			parse(t, test.spec, &policy.Spec)
			w := World{Policies: []*networking.NetworkPolicy{policy}}
			parse(t, world, &w.Pods)
			parse(t, spaces, &w.Namespaces)
			got := chain(Render(w), test.chain)
			if strings.Join(got, "\n") != strings.Join(test.want, "\n") {
				t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(test.want, "\n  "))
			}
		})
	}
}

func TestRenderJumps(t *testing.T) {
	deny := func(name string, kinds ...networking.PolicyType) *networking.NetworkPolicy {
		p := &networking.NetworkPolicy{Spec: networking.NetworkPolicySpec{PolicyTypes: kinds}}
		p.Name, p.Namespace = name, "shop"
		return p
	}
	w := World{Policies: []*networking.NetworkPolicy{deny("in", networking.PolicyTypeIngress), deny("out", networking.PolicyTypeEgress)}}
	parse(t, world, &w.Pods)
	parse(t, spaces, &w.Namespaces)
	out := "ip saddr vmap { 10.0.0.1 : jump from_10_0_0_1, 10.0.0.2 : jump from_10_0_0_2 }"
	in := "ip daddr vmap { 10.0.0.1 : jump to_10_0_0_1, 10.0.0.2 : jump to_10_0_0_2 }"
	replies, related := "ct state established ct direction reply accept", "ct state related accept"
	for hook, want := range map[string][]string{
		"forward": {"type filter hook forward priority 10; policy accept;", replies, related, out, in},
		"input":   {"type filter hook input priority 10; policy accept;", replies, related, out},
	} {
		got := chain(Render(w), "chain "+hook+" {")
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%s: got %q, want %q", hook, got, want)
		}
	}
	// The order of the objects in the API has no effect.
	w.Pods = append([]*corev1.Pod{w.Pods[1], w.Pods[0]}, w.Pods[2:]...)
	w.Policies[0], w.Policies[1] = w.Policies[1], w.Policies[0]
	if a := Render(w); strings.Join(chain(a, "chain forward {"), "\n") != strings.Join([]string{"type filter hook forward priority 10; policy accept;", replies, related, out, in}, "\n") {
		t.Errorf("another order gave another table:\n%s", a)
	}
}

// chain returns the lines of one chain.
func chain(rules, head string) []string {
	_, rest, ok := strings.Cut(rules, "\t"+head+"\n")
	if !ok {
		return nil
	}
	body, _, _ := strings.Cut(rest, "\t}\n")
	var lines []string
	for _, line := range strings.Split(strings.TrimSpace(body), "\n") {
		lines = append(lines, strings.TrimSpace(line))
	}
	return lines
}

func parse(t *testing.T, text string, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict([]byte(text), into); err != nil {
		t.Fatal(err)
	}
}
