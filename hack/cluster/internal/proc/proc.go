// Package proc keeps child processes running, each with its own log file, and waits for conditions with a limit.
package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Command is a program to run: argv[0] is the name of a binary, or of a link to one, in the group's folder.
type Command struct {
	Name string
	Args []string
	As   string // name of the log file; Name, if empty
}

// maxEnds is the number of exits after which a program, and so the group, has failed.
const maxEnds = 5

// Group keeps programs running: it restarts a program 0.5 s after it exits. (A test may kill the API server, and a
// controller manager exits if the API server starts slowly.)
type Group struct {
	bin, logs string
	start     chan func() // run on the single thread that starts children
	mu        sync.Mutex
	running   map[*exec.Cmd]chan struct{}
	closed    bool
	failed    chan error
}

// NewGroup creates a group whose programs are in bin and whose output goes to logs/NAME.log.
func NewGroup(bin, logs string) *Group {
	g := &Group{bin: bin, logs: logs, start: make(chan func()), running: map[*exec.Cmd]chan struct{}{}, failed: make(chan error, 1)}
	go func() {
		// A child gets its death signal when the thread that started it ends, so this thread lives as long as the process.
		runtime.LockOSThread()
		for f := range g.start {
			f()
		}
	}()
	return g
}

// Start runs a command and restarts it whenever it exits.
func (g *Group) Start(c Command) error {
	if c.As == "" {
		c.As = c.Name
	}
	return g.launch(c, 0)
}

// Failed returns the error of the first program that exited too often.
func (g *Group) Failed() <-chan error { return g.failed }

// Kill kills all programs and waits for their end.
func (g *Group) Kill() {
	g.mu.Lock()
	g.closed = true
	var ends []chan struct{}
	for cmd, end := range g.running {
		_ = cmd.Process.Kill() // an error means that it has just exited
		ends = append(ends, end)
	}
	g.mu.Unlock()
	for _, end := range ends {
		<-end
	}
}

func (g *Group) launch(c Command, ends int) error {
	done := make(chan error, 1)
	g.start <- func() { done <- g.spawn(c, ends) }
	return <-done
}

func (g *Group) spawn(c Command, ends int) error {
	if err := os.MkdirAll(g.logs, 0o755); err != nil {
		return err
	}
	path := filepath.Join(g.logs, c.As+".log")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(g.bin, c.Name), c.Args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return errors.New("the group has been ended")
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w (hack/cluster/build.sh builds it)", c.Name, err)
	}
	end := make(chan struct{})
	g.running[cmd] = end
	go g.watch(c, cmd, end, path, ends+1)
	return nil
}

func (g *Group) watch(c Command, cmd *exec.Cmd, end chan struct{}, log string, ends int) {
	started := time.Now()
	how := cmd.Wait()
	g.mu.Lock()
	delete(g.running, cmd)
	closed := g.closed
	g.mu.Unlock()
	close(end)
	if closed {
		return
	}
	if time.Since(started) > time.Minute {
		ends = 1 // it ran long enough: count from the beginning
	}
	err := fmt.Errorf("%s ended (%v); the end of %s:\n%s", c.As, cmd.ProcessState, log, Tail(log, 8))
	fmt.Fprintf(os.Stderr, "%s ended after %s (%v)\n", c.As, time.Since(started).Round(time.Millisecond), how)
	if ends < maxEnds {
		time.Sleep(500 * time.Millisecond)
		if err = g.launch(c, ends); err == nil {
			return
		}
	}
	select {
	case g.failed <- err:
	default:
	}
}

// Tail returns the last n lines of a file.
func Tail(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return "  " + strings.Join(lines[max(0, len(lines)-n):], "\n  ")
}

// Until calls try every 50 ms until it returns nil. It fails after the limit, or when the group has failed.
func (g *Group) Until(ctx context.Context, what string, limit time.Duration, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	last := errors.New("not tried yet")
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err // later errors only report the timeout
		}
		select {
		case err := <-g.failed:
			return fmt.Errorf("while waiting for %s: %w", what, err)
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("%s: not within %s; last error: %w", what, limit, last)
			}
			return fmt.Errorf("%s: cancelled: %w", what, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// StartTime distinguishes two processes with the same ID: clock ticks from boot to the start of the process, or "" if
// it does not exist (or is a zombie).
func StartTime(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	_, rest, ok := strings.Cut(string(b), ") ") // the name before it may contain spaces
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return fields[19]
}
