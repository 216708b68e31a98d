// Command cluster runs Kubernetes on this machine: nodes in their own namespaces, or a control plane without a node.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"serving.vllmendpoint.dev/hack/cluster/internal/control"
	"serving.vllmendpoint.dev/hack/cluster/internal/netpol"
	"serving.vllmendpoint.dev/hack/cluster/internal/node"
)

const usage = `usage: cluster COMMAND

  up                start the first node if it is not running, and wait until it is ready
  down [--purge]    remove all nodes; with --purge, also the images loaded into the first node
  status            print the running components
  kubeconfig        print the path of the kubeconfig file
  load IMAGE...     load images from buildah's storage into all nodes
  node add [--taint KEY=VALUE:EFFECT]... [NAME]
                    start a further node with the images of the first node, or one that was killed
  node kill NAME    simulate the loss of a further node: no packet leaves it, and its processes are killed
  node remove NAME  remove a further node, its Node object and its pods
  controlplane --dir D [--port P]
                    run only etcd, kube-apiserver and kube-controller-manager, on 127.0.0.1, in the foreground;
                    prints "ready D/kubeconfig" when ready
`

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
	case "node-init": // second part of up, in the node's namespaces
		return node.Init(args[0])
	case "node-supervise":
		return node.Supervise(ctx, args[0])
	case "node":
		return runNode(ctx, args)
	case "netpol":
		kubeconfig := flags.String("kubeconfig", "", "kubeconfig file of the API server")
		if err := flags.Parse(args); err != nil {
			return err
		}
		return netpol.Run(ctx, *kubeconfig)
	case "controlplane":
		dir := flags.String("dir", "", "folder for its files; files of an earlier run are removed")
		port := flags.Int("port", 0, "port of the API on 127.0.0.1 (default: a free one)")
		if err := flags.Parse(args); err != nil {
			return err
		}
		if *dir == "" {
			return errors.New("controlplane requires --dir, a folder for its files")
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() { // poll: a death signal would arrive when the parent's thread ends, not the parent
			for parent := os.Getppid(); os.Getppid() == parent; {
				time.Sleep(time.Second)
			}
			cancel()
		}()
		return control.Run(ctx, *dir, *port)
	}
	purge := false
	if command == "down" {
		flags.BoolVar(&purge, "purge", false, "remove the images too")
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	if command != "load" && flags.NArg() > 0 {
		return fmt.Errorf("%s takes no argument %q", command, flags.Arg(0))
	}
	c, err := node.ConfigFromEnv()
	if err != nil {
		return err
	}
	switch command {
	case "up":
		return node.Up(ctx, c)
	case "down":
		return node.Down(ctx, c, purge)
	case "status":
		return node.Status(ctx, c)
	case "kubeconfig":
		fmt.Println(c.Kubeconfig())
		return nil
	case "load":
		return node.Load(ctx, c, flags.Args())
	default:
		fmt.Fprint(os.Stderr, usage)
		return fmt.Errorf("unknown command %q", command)
	}
}

func runNode(ctx context.Context, args []string) error {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return flag.ErrHelp
	}
	command := "node " + args[0]
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	var taints []corev1.Taint
	if command == "node add" {
		flags.Func("taint", "KEY=VALUE:EFFECT, can be repeated", func(text string) error {
			taint, err := node.ParseTaint(text)
			taints = append(taints, taint)
			return err
		})
	}
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	name := flags.Arg(0)
	if flags.NArg() > 1 || (name == "" && command != "node add") {
		return fmt.Errorf("%s takes one name, after all flags", command)
	}
	c, err := node.ConfigFromEnv()
	if err != nil {
		return err
	}
	switch command {
	case "node add":
		return node.Add(ctx, c, name, taints)
	case "node kill":
		return node.Kill(ctx, c, name)
	case "node remove":
		return node.Remove(ctx, c, name)
	default:
		fmt.Fprint(os.Stderr, usage)
		return fmt.Errorf("unknown command %q", command)
	}
}
