package node

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
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

// connectHost creates the link into the first node's network namespace, and the host's routes to all nodes, pods and
// Services. They disappear with that namespace.
func connectHost(c Config, pid int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = c.hostLink()
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsPid(pid)}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add the link %s between host and node: %w", attrs.Name, err)
	}
	link, err := upWith(attrs.Name, c.hostIP())
	if err != nil {
		return err
	}
	router := c.first().ip()
	if err := hostRoute(link, router, ""); err != nil {
		return err
	}
	for _, p := range []netip.Prefix{c.Nodes, c.Pods, c.Service} {
		if err := route(link, p.String(), router); err != nil {
			return err
		}
	}
	return nil
}

// connectFirst creates the link between a further node and the first node, which forwards the further node's packets.
// It disappears with either namespace.
func connectFirst(first *State, n Node, pid int) error {
	return inNetworkOf(first.Pid, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = n.link()
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsPid(pid)}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add the link %s between the nodes: %w", attrs.Name, err)
		}
		link, err := upWith(attrs.Name, "")
		if err != nil {
			return err
		}
		if err := hostRoute(link, n.ip(), first.ip()); err != nil {
			return err
		}
		return route(link, n.pods().String(), n.ip())
	})
}

// disconnectFirst removes that link, if the first node is running.
func disconnectFirst(first *State, n Node) error {
	if first == nil || !first.alive() {
		return nil
	}
	return inNetworkOf(first.Pid, func() error { return removeLink(n.link()) })
}

// inNetworkOf calls f in the network namespace of a process.
func inNetworkOf(pid int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this function, and its namespace is not reused
		done <- func() error {
			ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter the network namespace of process %d: %w", pid, err)
			}
			return f()
		}()
	}()
	return <-done
}

// connectNode configures the node's end of the link, inside the namespace.
func connectNode(n Node) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	link, err := upWith("eth0", n.ip())
	if err != nil {
		return err
	}
	if err := hostRoute(link, n.peerIP(), ""); err != nil {
		return err
	}
	if err := route(link, "0.0.0.0/0", n.peerIP()); err != nil {
		return err
	}
	if n.Index == 0 {
		// Packets to a node that was killed get no answer. The default route would send them back and forth.
		for _, p := range []netip.Prefix{n.Nodes, n.Pods} {
			if err := blackhole(p.String()); err != nil {
				return err
			}
		}
	}
	// Without the second setting, traffic between pods on the bridge bypasses Services and NetworkPolicies.
	for _, file := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/bridge/bridge-nf-call-iptables"} {
		if err := os.WriteFile(file, []byte("1"), 0o644); err != nil {
			return fmt.Errorf("%w (is the kernel built with, or has it loaded, br_netfilter?)", err)
		}
	}
	return nil
}

// upWith brings up a link, with an address unless ip is empty. All links are point-to-point: see hostRoute.
func upWith(name, ip string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find the link %s: %w", name, err)
	}
	if ip != "" {
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: netlink.NewIPNet(net.ParseIP(ip))}); err != nil {
			return nil, fmt.Errorf("give %s the address %s: %w", name, ip, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("bring up %s: %w", name, err)
	}
	return link, nil
}

// hostRoute adds the route to the address at the other end of a link. from is the sender's address, by default the
// link's.
func hostRoute(link netlink.Link, ip, from string) error {
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: netlink.NewIPNet(net.ParseIP(ip)), Src: net.ParseIP(from), Scope: netlink.SCOPE_LINK}
	if err := netlink.RouteAdd(r); err != nil {
		return fmt.Errorf("add the route to %s: %w", ip, err)
	}
	return nil
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

// blackhole drops packets to a range, except for those with a more specific route.
func blackhole(to string) error {
	_, dst, err := net.ParseCIDR(to)
	if err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Type: unix.RTN_BLACKHOLE}); err != nil {
		return fmt.Errorf("drop packets to %s: %w", to, err)
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
