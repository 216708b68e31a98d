package node

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"text/template"

	"serving.vllmendpoint.dev/hack/cluster/internal/pki"
	"serving.vllmendpoint.dev/hack/cluster/internal/proc"
)

// The images that the node itself needs, created from programs that build.sh has built.
const (
	pauseImage   = "localhost/vllmendpoint-cluster/pause:local"
	corednsImage = "localhost/vllmendpoint-cluster/coredns:local"
)

//go:embed addons.yaml
var addonsTemplate string

//go:embed containerd.toml
var containerdTemplate string

type object = map[string]any

// nodePrograms lists the programs of the node besides the control plane.
func (s *supervisor) nodePrograms() []proc.Command {
	return []proc.Command{
		{Name: "kubelet", Args: []string{
			"--config=" + s.path("kubelet.json"), "--kubeconfig=" + s.path("kubelet.kubeconfig"),
			"--hostname-override=" + s.Name, "--node-ip=" + s.ip(),
		}},
		{Name: "kube-proxy", Args: []string{"--config=" + s.path("kube-proxy.json")}},
	}
}

func (s *supervisor) netpol() proc.Command {
	return proc.Command{Name: "cluster", Args: []string{"netpol", "--kubeconfig", s.path("netpol.kubeconfig")}, As: "netpol"}
}

// writeFiles writes certificates and configuration of the node's programs.
func (s *supervisor) writeFiles(keys *pki.Dir) error {
	users := map[string]pki.Subject{
		"kubelet": {User: "system:node:" + s.Name, Groups: []string{"system:nodes"},
			IPs: []net.IP{net.ParseIP(s.ip())}, Names: []string{s.Name}},
		"kube-proxy": {User: "system:kube-proxy"},
		"netpol":     {User: "netpol"},
	}
	for name, subject := range users {
		if err := keys.Issue(name, subject); err != nil {
			return err
		}
		if err := keys.Kubeconfig(s.path(name+".kubeconfig"), s.server(), name); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(s.path("cni"), 0o755); err != nil {
		return err
	}
	resolv := fmt.Sprintf("nameserver %s\n", s.dnsIP())
	if err := os.WriteFile(s.path("resolv.conf"), []byte(resolv), 0o644); err != nil {
		return err
	}
	values := map[string]string{
		"Dir": s.path(), "Node": s.Name, "Bin": s.Bin, "Cgroup": "/" + s.cgroup() + "/daemons", "PauseImage": pauseImage, "CoreDNSImage": corednsImage,
		"DNS": s.dnsIP(), "Socket": socket, "Store": s.path(imageStore),
	}
	for name, text := range map[string]string{"addons.yaml": addonsTemplate, "containerd.toml": containerdTemplate} {
		if err := render(s.path(name), text, values); err != nil {
			return err
		}
	}
	for name, value := range map[string]object{
		"kubelet.json": s.kubelet(keys), "kube-proxy.json": s.kubeProxy(), "cni/10-local.conflist": s.cni(),
	} {
		b, err := json.MarshalIndent(value, "", " ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(s.path(name), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func render(path, text string, values map[string]string) error {
	var b strings.Builder
	if err := template.Must(template.New(path).Option("missingkey=error").Parse(text)).Execute(&b, values); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(b.String()), 0o644)
}

func (s *supervisor) kubelet(keys *pki.Dir) object {
	return object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"address": s.ip(),
		"authentication": object{
			"anonymous": object{"enabled": false}, "webhook": object{"enabled": true},
			"x509": object{"clientCAFile": keys.File("ca.crt")},
		},
		"authorization": object{"mode": "Webhook"},
		"tlsCertFile":   keys.File("kubelet.crt"), "tlsPrivateKeyFile": keys.File("kubelet.key"),
		"containerRuntimeEndpoint": "unix://" + socket,
		"cgroupDriver":             "cgroupfs", "cgroupRoot": "/" + s.cgroup(),
		"failCgroupV1": false, "failSwapOn": false,
		"enforceNodeAllocatable": []string{"pods"},
		"clusterDNS":             []string{s.dnsIP()}, "clusterDomain": "cluster.local", "resolvConf": s.path("resolv.conf"),
		"podLogsDir": s.path("pod-logs"), "volumePluginDir": s.path("volume-plugins"),
		"serializeImagePulls": false, "registerWithTaints": s.Taints,
		// The disk belongs to the developer, so its usage is irrelevant to the node. Images are never garbage-collected,
		// because they could not be pulled again.
		"evictionHard":                object{"memory.available": "100Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
		"imageGCHighThresholdPercent": 100,
	}
}

func (s *supervisor) kubeProxy() object {
	return object{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"clientConnection": object{"kubeconfig": s.path("kube-proxy.kubeconfig")},
		"hostnameOverride": s.Name, "bindAddress": s.ip(),
		"mode":      "nftables",
		"conntrack": object{"maxPerCore": 0, "min": 0}, // otherwise it changes the setting of the whole machine
	}
}

func (s *supervisor) cni() object {
	return object{
		"cniVersion": "1.0.0", "name": "local",
		"plugins": []object{
			{
				"type": "bridge", "bridge": "cni0", "isGateway": true,
				"hairpinMode": true, // a pod may reach itself through its Service
				"ipam": object{
					"type": "host-local", "dataDir": s.path("cni-addresses"),
					"ranges": [][]object{{{"subnet": s.pods().String()}}}, "routes": []object{{"dst": "0.0.0.0/0"}},
				},
			},
			{"type": "portmap", "capabilities": object{"portMappings": true}, "backend": "nftables"},
		},
	}
}
