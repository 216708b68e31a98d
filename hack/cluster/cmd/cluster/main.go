// Command cluster runs a real Kubernetes on this machine: a whole node in namespaces of its own, or a control plane
// alone.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"context"

	"serving.vllmendpoint.dev/hack/cluster/internal/control"
)

const usage = `usage: cluster COMMAND

  controlplane --dir D [--port P]
                    etcd, kube-apiserver and kube-controller-manager alone, on 127.0.0.1, in the foreground;
                    prints "ready D/kubeconfig" when ready
`

func init() {
	// Children die with the thread that started them: all are started from the main goroutine, and the main thread
	// lives as long as the process.
	runtime.LockOSThread()
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "cluster:", err)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return flag.ErrHelp
	}
	command, args := args[0], args[1:]
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	switch command {
	case "controlplane":
		dir := flags.String("dir", "", "folder for its files; emptied of an earlier run's")
		port := flags.Int("port", 0, "port of the API on 127.0.0.1 (default: a free one)")
		if err := flags.Parse(args); err != nil {
			return err
		}
		if *dir == "" {
			return errors.New("controlplane needs --dir, a folder for its files")
		}
		return control.Run(ctx, *dir, *port)
	default:
		fmt.Fprint(os.Stderr, usage)
		return fmt.Errorf("unknown command %q", command)
	}
}
