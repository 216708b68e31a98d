package control

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"serving.vllmendpoint.dev/hack/cluster/internal/proc"
)

// Run starts a control plane without a node on 127.0.0.1, prints when it is ready, and stops it with the context.
func Run(ctx context.Context, dir string, port int) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	bin, err := os.Executable()
	if err != nil {
		return err
	}
	// Between the check for a free port and its use by the child, another process may bind it. If the port was not
	// given, the failed start is repeated with other ports.
	for try := 1; ; try++ {
		err := runOnce(ctx, dir, filepath.Dir(bin), port)
		if err == nil || port != 0 || try == 3 || !strings.Contains(err.Error(), "address already in use") {
			return err
		}
		fmt.Fprintln(os.Stderr, "another process has bound a port; retrying with other ports")
	}
}

func runOnce(ctx context.Context, dir, binDir string, port int) error {
	for _, old := range []string{"etcd", "pki", "logs", "kubeconfig", "audit.log"} {
		if err := os.RemoveAll(filepath.Join(dir, old)); err != nil {
			return fmt.Errorf("empty the folder of an earlier run: %w", err)
		}
	}
	p := &Plane{Dir: dir, IP: "127.0.0.1", Port: port, ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"), ControllerQPS: 300}
	var err error
	if p.Port == 0 {
		if p.Port, err = freePorts(1); err != nil {
			return err
		}
	}
	if p.EtcdPort, err = freePorts(2); err != nil {
		return err
	}
	pending := p.Kubeconfig() + ".pending" // renamed when the API is ready
	pki, err := p.Prepare(pending)
	if err != nil {
		return err
	}
	group := proc.NewGroup(binDir, filepath.Join(dir, "logs"))
	defer group.Kill() // SIGKILL: a graceful end of the API server takes 8 s, and its data is not needed
	for _, c := range p.Commands(pki) {
		if err := group.Start(c); err != nil {
			return err
		}
	}
	if err := Ready(ctx, pending, 60*time.Second, group); err != nil {
		if ctx.Err() != nil {
			return nil // terminated before it was ready
		}
		return err
	}
	if err := os.Rename(pending, p.Kubeconfig()); err != nil {
		return err
	}
	fmt.Println("ready", p.Kubeconfig())
	select {
	case <-ctx.Done():
		return nil
	case err := <-group.Failed():
		return err
	}
}

// Answers waits until the API server is ready.
func Answers(ctx context.Context, kubeconfig string, limit time.Duration, group *proc.Group) error {
	return await(ctx, "the API server to be ready", kubeconfig, limit, group, func(ctx context.Context, c *kubernetes.Clientset) error {
		_, err := c.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
}

// Ready also waits until the controller manager has created the first service account.
func Ready(ctx context.Context, kubeconfig string, limit time.Duration, group *proc.Group) error {
	if err := Answers(ctx, kubeconfig, limit, group); err != nil {
		return err
	}
	return await(ctx, "the controller manager to work", kubeconfig, limit, group, func(ctx context.Context, c *kubernetes.Clientset) error {
		_, err := c.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

func await(ctx context.Context, what, kubeconfig string, limit time.Duration, group *proc.Group, try func(context.Context, *kubernetes.Clientset) error) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.Timeout = 5 * time.Second
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	return group.Until(ctx, what, limit, func(ctx context.Context) error { return try(ctx, client) })
}

// freePorts finds n consecutive free ports below those that the kernel uses for outgoing connections.
func freePorts(n int) (int, error) {
	for range 100 {
		first := 20000 + rand.IntN(12000)
		if allFree(first, n) {
			return first, nil
		}
	}
	return 0, fmt.Errorf("no %d consecutive free ports on 127.0.0.1 between 20000 and 32000", n)
}

func allFree(first, n int) bool {
	for port := first; port < first+n; port++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}
