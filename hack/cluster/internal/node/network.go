package node

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
)

// checkRanges refuses ranges that the host already uses, or that overlap.
func checkRanges(c Config) error {
	ours := []struct {
		env string
		p   netip.Prefix
	}{{"VLLMENDPOINT_NODE_CIDR", c.Nodes}, {"VLLMENDPOINT_POD_CIDR", c.Pods}, {"VLLMENDPOINT_SERVICE_CIDR", c.Service}}
	for i, a := range ours {
		for _, b := range ours[i+1:] {
			if a.p.Overlaps(b.p) {
				return fmt.Errorf("%s=%s and %s=%s overlap", a.env, a.p, b.env, b.p)
			}
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list the host's routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		theirs, err := netip.ParsePrefix(r.Dst.String())
		if err != nil || theirs.Bits() == 0 {
			continue
		}
		for _, a := range ours {
			if a.p.Overlaps(theirs) {
				return fmt.Errorf("the host has a route to %s, which overlaps %s=%s: set %s to a free range", theirs, a.env, a.p, a.env)
			}
		}
	}
	return nil
}

// connectHost creates the link into the network namespace of pid and the host's routes to it. They disappear with that
// namespace.
func connectHost(c Config, pid int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = c.link()
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsPid(pid)}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add the link %s between host and node: %w", attrs.Name, err)
	}
	link, err := upWith(attrs.Name, c.hostIP(), c.Nodes.Bits())
	if err != nil {
		return err
	}
	for _, p := range []netip.Prefix{c.Pods, c.Service} {
		if err := route(link, p.String(), c.nodeIP()); err != nil {
			return err
		}
	}
	return nil
}

// connectNode configures the other end of the link, inside the namespace.
func connectNode(c Config) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	link, err := upWith("eth0", c.nodeIP(), c.Nodes.Bits())
	if err != nil {
		return err
	}
	if err := route(link, "0.0.0.0/0", c.hostIP()); err != nil {
		return err
	}
	// Without the second setting, traffic between pods on the bridge bypasses Services and NetworkPolicies.
	for _, file := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/bridge/bridge-nf-call-iptables"} {
		if err := os.WriteFile(file, []byte("1"), 0o644); err != nil {
			return fmt.Errorf("%w (is the kernel built with, or has it loaded, br_netfilter?)", err)
		}
	}
	return nil
}

func upWith(name, ip string, bits int) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find the link %s: %w", name, err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(ip), Mask: net.CIDRMask(bits, 32)}}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return nil, fmt.Errorf("give %s the address %s: %w", name, ip, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("bring up %s: %w", name, err)
	}
	return link, nil
}

func route(link netlink.Link, to, via string) error {
	_, dst, err := net.ParseCIDR(to)
	if err != nil {
		return err
	}
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Gw: net.ParseIP(via)}
	if err := netlink.RouteAdd(r); err != nil {
		return fmt.Errorf("add the route to %s via %s: %w", to, via, err)
	}
	return nil
}

// removeLink removes a link whose namespace exists for a moment longer than its processes.
func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := netlink.LinkDel(link); err != nil && !os.IsNotExist(err) {
		if _, gone := netlink.LinkByName(name); !errors.As(gone, &netlink.LinkNotFoundError{}) {
			return fmt.Errorf("remove the link %s: %w", name, err)
		}
	}
	return nil
}
