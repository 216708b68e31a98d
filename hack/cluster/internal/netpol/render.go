// Package netpol enforces NetworkPolicies on one node with one nftables table that is replaced at each change.
package netpol

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

const table = "inet vllmendpoint_netpol"

// World is the input of the rules.
type World struct {
	Pods       []*corev1.Pod
	Namespaces []*corev1.Namespace
	Policies   []*networking.NetworkPolicy
}

// Render returns the input for nft that replaces the table in one step.
//
// Each isolated pod has a chain for the direction in which it is isolated. A rule that allows traffic returns from the
// chain, so that the chain of the other end is evaluated, too; the end of the chain drops. Traffic of the node itself
// (the kubelet's probes, the API server's proxy) passes no hook used here. Traffic from pods to the node is checked
// against the senders' rules in the input hook.
func Render(w World) string {
	w = w.live()
	var chains strings.Builder
	jumps := map[direction][]string{}
	for _, pod := range w.Pods {
		for _, d := range []direction{ingress, egress} {
			body, isolated := w.chain(pod, d)
			if !isolated {
				continue
			}
			name := d.prefix + strings.ReplaceAll(pod.Status.PodIP, ".", "_")
			jumps[d] = append(jumps[d], pod.Status.PodIP+" : jump "+name)
			fmt.Fprintf(&chains, "\tchain %s { # %s/%s\n", name, pod.Namespace, pod.Name)
			for _, rule := range body {
				fmt.Fprintf(&chains, "\t\t%s\n", rule)
			}
			chains.WriteString("\t\tdrop\n\t}\n")
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "table %s\ndelete table %s\ntable %s {\n%s", table, table, table, chains.String())
	base := func(hook string, directions ...direction) {
		fmt.Fprintf(&b, "\tchain %s {\n\t\ttype filter hook %s priority 10; policy accept;\n", hook, hook)
		// Only replies pass without a check, so that a policy also applies to connections that exist already.
		b.WriteString("\t\tct state established ct direction reply accept\n\t\tct state related accept\n")
		for _, d := range directions {
			if len(jumps[d]) > 0 {
				fmt.Fprintf(&b, "\t\tip %s vmap { %s }\n", d.pod, strings.Join(jumps[d], ", "))
			}
		}
		b.WriteString("\t}\n")
	}
	base("forward", egress, ingress)
	base("input", egress)
	b.WriteString("}\n")
	return b.String()
}

// direction selects which address of a packet is the pod's and which is the peer's.
type direction struct {
	kind              networking.PolicyType
	prefix, pod, peer string
}

var (
	ingress = direction{networking.PolicyTypeIngress, "to_", "daddr", "saddr"}
	egress  = direction{networking.PolicyTypeEgress, "from_", "saddr", "daddr"}
)

// live omits pods without their own address, and sorts: the same world renders the same text.
func (w World) live() World {
	w.Pods = slices.DeleteFunc(slices.Clone(w.Pods), func(p *corev1.Pod) bool {
		a, err := netip.ParseAddr(p.Status.PodIP)
		return err != nil || !a.Is4() || p.Spec.HostNetwork ||
			p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	})
	slices.SortFunc(w.Pods, func(a, b *corev1.Pod) int {
		return cmp.Or(cmp.Compare(a.Status.PodIP, b.Status.PodIP), cmp.Compare(a.Name, b.Name))
	})
	w.Policies = slices.Clone(w.Policies)
	slices.SortFunc(w.Policies, func(a, b *networking.NetworkPolicy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return w
}

// chain lists the allowed traffic to or from a pod, if any policy isolates it.
func (w World) chain(pod *corev1.Pod, d direction) (body []string, isolated bool) {
	for _, p := range w.Policies {
		if p.Namespace != pod.Namespace || !matches(&p.Spec.PodSelector, pod.Labels) || !slices.Contains(types(p), d.kind) {
			continue
		}
		if !isolated {
			isolated = true
			body = append(body, fmt.Sprintf("ip %s %s return", d.peer, pod.Status.PodIP)) // a pod may always reach itself
		}
		if d.kind == networking.PolicyTypeIngress {
			for _, r := range p.Spec.Ingress {
				body = append(body, w.rule(d, p.Namespace, pod, r.From, r.Ports)...)
			}
		} else {
			for _, r := range p.Spec.Egress {
				body = append(body, w.rule(d, p.Namespace, pod, r.To, r.Ports)...)
			}
		}
	}
	return body, isolated
}

// types applies the API's default: ingress always, egress where there are rules for it.
func types(p *networking.NetworkPolicy) []networking.PolicyType {
	if len(p.Spec.PolicyTypes) > 0 {
		return p.Spec.PolicyTypes
	}
	if len(p.Spec.Egress) > 0 {
		return []networking.PolicyType{networking.PolicyTypeIngress, networking.PolicyTypeEgress}
	}
	return []networking.PolicyType{networking.PolicyTypeIngress}
}

// rule writes one rule of a policy: any of the peers with any of the ports. No peers, or no ports, means all.
func (w World) rule(d direction, namespace string, pod *corev1.Pod, peers []networking.NetworkPolicyPeer, ports []networking.NetworkPolicyPort) []string {
	var lines []string
	allow := func(peer, port string) {
		lines = append(lines, strings.Join(strings.Fields(peer+" "+port+" return"), " "))
	}
	pods := w.peerPods(namespace, peers)
	sources := blocks(d, peers)
	if len(peers) == 0 {
		sources = []string{""}
	} else if len(pods) > 0 {
		sources = append(sources, addresses(d, pods))
	}
	if len(ports) == 0 {
		for _, s := range sources {
			allow(s, "")
		}
		return lines
	}
	for _, p := range ports {
		if p.Port == nil || p.Port.StrVal == "" {
			for _, s := range sources {
				allow(s, number(p))
			}
			continue
		}
		// The receiving pod defines the name: this pod, or each of the peers.
		if d.kind == networking.PolicyTypeIngress {
			for _, n := range named(pod, p) {
				for _, s := range sources {
					allow(s, match(p, fmt.Sprint(n)))
				}
			}
			continue
		}
		receivers := pods
		if len(peers) == 0 {
			receivers = w.Pods
		}
		for _, r := range receivers {
			for _, n := range named(r, p) {
				allow(addresses(d, []*corev1.Pod{r}), match(p, fmt.Sprint(n)))
			}
		}
	}
	return lines
}

// blocks renders the peers that are address ranges.
func blocks(d direction, peers []networking.NetworkPolicyPeer) []string {
	var out []string
	for _, peer := range peers {
		if peer.IPBlock == nil || !isIPv4(peer.IPBlock.CIDR) {
			continue
		}
		text := fmt.Sprintf("ip %s %s", d.peer, peer.IPBlock.CIDR)
		for _, except := range peer.IPBlock.Except {
			if isIPv4(except) {
				text += fmt.Sprintf(" ip %s != %s", d.peer, except)
			}
		}
		out = append(out, text)
	}
	return out
}

func isIPv4(cidr string) bool {
	p, err := netip.ParsePrefix(cidr)
	return err == nil && p.Addr().Is4()
}

// peerPods finds the pods that any of the peers selects.
func (w World) peerPods(namespace string, peers []networking.NetworkPolicyPeer) []*corev1.Pod {
	inNamespace := map[string]labels.Set{}
	for _, n := range w.Namespaces {
		inNamespace[n.Name] = n.Labels
	}
	var out []*corev1.Pod
	for _, pod := range w.Pods {
		if slices.ContainsFunc(peers, func(p networking.NetworkPolicyPeer) bool {
			switch {
			case p.IPBlock != nil:
				return false
			case p.NamespaceSelector == nil:
				return pod.Namespace == namespace && matches(p.PodSelector, pod.Labels)
			}
			return matches(p.NamespaceSelector, inNamespace[pod.Namespace]) &&
				(p.PodSelector == nil || matches(p.PodSelector, pod.Labels))
		}) {
			out = append(out, pod)
		}
	}
	return out
}

func matches(selector *metav1.LabelSelector, set labels.Set) bool {
	s, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && s.Matches(set) // the API server accepts no invalid selector
}

func addresses(d direction, pods []*corev1.Pod) string {
	var list []string
	for _, p := range pods {
		list = append(list, p.Status.PodIP)
	}
	return fmt.Sprintf("ip %s { %s }", d.peer, strings.Join(slices.Compact(list), ", "))
}

func protocol(p networking.NetworkPolicyPort) corev1.Protocol {
	if p.Protocol == nil {
		return corev1.ProtocolTCP
	}
	return *p.Protocol
}

func match(p networking.NetworkPolicyPort, ports string) string {
	return strings.ToLower(string(protocol(p))) + " dport " + ports
}

func number(p networking.NetworkPolicyPort) string {
	switch {
	case p.Port == nil:
		return "meta l4proto " + strings.ToLower(string(protocol(p)))
	case p.EndPort != nil && *p.EndPort > p.Port.IntVal:
		return match(p, fmt.Sprintf("%d-%d", p.Port.IntVal, *p.EndPort))
	}
	return match(p, p.Port.String())
}

// named lists the port numbers that a pod has for a name.
func named(pod *corev1.Pod, p networking.NetworkPolicyPort) []int32 {
	var out []int32
	for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) { // the latter include sidecars
		for _, port := range c.Ports {
			if port.Name == p.Port.StrVal && cmp.Or(port.Protocol, corev1.ProtocolTCP) == protocol(p) {
				out = append(out, port.ContainerPort)
			}
		}
	}
	return out
}
