// Package control defines the control plane: the certificates and flags of etcd, kube-apiserver,
// kube-controller-manager and kube-scheduler. It starts nothing.
package control

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"serving.vllmendpoint.dev/hack/cluster/internal/pki"
	"serving.vllmendpoint.dev/hack/cluster/internal/proc"
)

// Plane describes one control plane.
type Plane struct {
	Dir           string // certificates, etcd's data, kubeconfig files, audit log
	IP            string // where the API serves
	Port          int
	EtcdPort      int // etcd's peer port is the next one
	ServiceCIDR   netip.Prefix
	PodCIDR       netip.Prefix // valid only with a node
	ControllerQPS int          // the controller manager's requests per second
}

// Server is the API's address.
func (p *Plane) Server() string { return fmt.Sprintf("https://%s:%d", p.IP, p.Port) }

// Kubeconfig is the administrator's kubeconfig file.
func (p *Plane) Kubeconfig() string { return p.path("kubeconfig") }

// AuditLog is the file with one line per API call.
func (p *Plane) AuditLog() string { return p.path("audit.log") }

func (p *Plane) hasNode() bool { return p.PodCIDR.IsValid() }

func (p *Plane) path(parts ...string) string {
	return filepath.Join(append([]string{p.Dir}, parts...)...)
}

// Metadata of every call. RequestReceived is omitted so that a call is one line instead of two (a watch has two, for its
// start and its end).
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
`

// Prepare writes certificates and files, and finally the administrator's kubeconfig as adminFile.
func (p *Plane) Prepare(adminFile string) (*pki.Dir, error) {
	d, err := pki.New(p.path("pki"))
	if err != nil {
		return nil, err
	}
	ip := net.ParseIP(p.IP)
	subjects := map[string]pki.Subject{
		"apiserver": {User: "kube-apiserver",
			IPs: []net.IP{ip, net.IPv4(127, 0, 0, 1), net.IP(p.ServiceCIDR.Addr().Next().AsSlice())},
			Names: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
				"kubernetes.default.svc.cluster.local"}},
		"apiserver-kubelet": {User: "kube-apiserver-kubelet-client", Groups: []string{"system:masters"}},
		"front-proxy":       {User: "front-proxy"},
		"admin":             {User: "vllmendpoint-admin", Groups: []string{"system:masters"}},
		"controller-manager": {User: "system:kube-controller-manager",
			IPs: []net.IP{net.IPv4(127, 0, 0, 1)}},
	}
	if p.hasNode() {
		subjects["scheduler"] = pki.Subject{User: "system:kube-scheduler", IPs: []net.IP{net.IPv4(127, 0, 0, 1)}}
	}
	for name, s := range subjects {
		if err := d.Issue(name, s); err != nil {
			return nil, err
		}
	}
	if err := d.Key("service-account"); err != nil {
		return nil, err
	}
	if err := os.WriteFile(p.path("audit-policy.yaml"), []byte(auditPolicy), 0o644); err != nil {
		return nil, err
	}
	for _, name := range []string{"controller-manager", "scheduler"} {
		if _, ok := subjects[name]; ok {
			if err := d.Kubeconfig(p.path(name+".kubeconfig"), p.Server(), name); err != nil {
				return nil, err
			}
		}
	}
	return d, d.Kubeconfig(adminFile, p.Server(), "admin")
}

// Commands lists the commands to run, in order.
func (p *Plane) Commands(d *pki.Dir) []proc.Command {
	etcd := fmt.Sprintf("http://127.0.0.1:%d", p.EtcdPort)
	peer := fmt.Sprintf("http://127.0.0.1:%d", p.EtcdPort+1)
	commands := []proc.Command{
		{Name: "etcd", Args: []string{
			"--name=local", "--data-dir=" + p.path("etcd"), "--log-level=warn",
			"--listen-client-urls=" + etcd, "--advertise-client-urls=" + etcd,
			"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer,
			"--initial-cluster=local=" + peer,
			"--unsafe-no-fsync", // the data need not survive a crash of the machine
		}},
		{Name: "kube-apiserver", Args: p.apiserver(d, etcd)},
		{Name: "kube-controller-manager", Args: p.controllerManager(d)},
	}
	if p.hasNode() {
		config := p.path("scheduler.kubeconfig")
		commands = append(commands, proc.Command{Name: "kube-scheduler", Args: []string{
			"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
			"--bind-address=127.0.0.1", "--leader-elect=false", "--profiling=false", "--authentication-skip-lookup",
			"--tls-cert-file=" + d.File("scheduler.crt"), "--tls-private-key-file=" + d.File("scheduler.key"),
		}})
	}
	return commands
}

func (p *Plane) apiserver(d *pki.Dir, etcd string) []string {
	args := []string{
		"--etcd-servers=" + etcd,
		"--bind-address=" + p.IP, "--advertise-address=" + p.IP, fmt.Sprintf("--secure-port=%d", p.Port),
		"--tls-cert-file=" + d.File("apiserver.crt"), "--tls-private-key-file=" + d.File("apiserver.key"),
		"--client-ca-file=" + d.File("ca.crt"),
		"--anonymous-auth=false",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
		"--service-cluster-ip-range=" + p.ServiceCIDR.String(),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + d.File("service-account.pub"),
		"--service-account-signing-key-file=" + d.File("service-account.key"),
		"--requestheader-client-ca-file=" + d.File("ca.crt"), "--requestheader-allowed-names=front-proxy",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + d.File("front-proxy.crt"), "--proxy-client-key-file=" + d.File("front-proxy.key"),
		"--audit-policy-file=" + p.path("audit-policy.yaml"), "--audit-log-path=" + p.AuditLog(),
		"--audit-log-format=json", "--audit-log-maxsize=1000", "--audit-log-maxbackup=1",
		"--profiling=false",
	}
	if !p.hasNode() { // Services are not reachable, and the loopback address is not a valid endpoint
		return append(args, "--endpoint-reconciler-type=none")
	}
	return append(args,
		"--endpoint-reconciler-type=lease",
		"--kubelet-certificate-authority="+d.File("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		"--kubelet-client-certificate="+d.File("apiserver-kubelet.crt"),
		"--kubelet-client-key="+d.File("apiserver-kubelet.key"))
}

func (p *Plane) controllerManager(d *pki.Dir) []string {
	config := p.path("controller-manager.kubeconfig")
	args := []string{
		"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
		"--leader-elect=false", "--use-service-account-credentials",
		"--authentication-skip-lookup", // it would exit if the API server is not ready yet
		"--root-ca-file=" + d.File("ca.crt"),
		"--service-account-private-key-file=" + d.File("service-account.key"),
		"--cluster-signing-cert-file=" + d.File("ca.crt"), "--cluster-signing-key-file=" + d.File("ca.key"),
		"--flex-volume-plugin-dir=" + p.path("volume-plugins"), // it creates this folder, which must not be in /usr
		"--profiling=false",
	}
	if p.ControllerQPS > 0 {
		args = append(args, fmt.Sprintf("--kube-api-qps=%d", p.ControllerQPS), fmt.Sprintf("--kube-api-burst=%d", 2*p.ControllerQPS))
	}
	if !p.hasNode() {
		return append(args, "--secure-port=0") // several run on one machine, and its metrics are not used
	}
	return append(args, "--bind-address=127.0.0.1",
		"--tls-cert-file="+d.File("controller-manager.crt"), "--tls-private-key-file="+d.File("controller-manager.key"))
}
