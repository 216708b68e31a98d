// Package proc starts child processes, each with a log file of its own, and waits for things with a bound.
package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Child is a running program.
type Child struct {
	Name string
	Log  string
	Done chan struct{} // closed when it has ended
	Err  error         // how it ended; read it after Done
	cmd  *exec.Cmd
}

// Start runs binDir/name with its output in logDir/name.log. The child is killed when the calling *thread* ends
// (the only notice Linux gives of a parent that was killed), so call it from a goroutine that is locked to a thread
// for as long as the child shall live.
func Start(binDir, logDir, name string, args []string, env ...string) (*Child, error) {
	if err := os.MkdirAll(logDir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(logDir, name+".log")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(binDir, name), args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w (run hack/cluster/build.sh, which builds it)", name, err)
	}
	c := &Child{Name: name, Log: path, Done: make(chan struct{}), cmd: cmd}
	go func() {
		c.Err = cmd.Wait()
		close(c.Done)
	}()
	return c, nil
}

// Kill ends the child at once and waits for it.
func (c *Child) Kill() {
	_ = c.cmd.Process.Kill() // an error means that it has ended
	<-c.Done
}

// Pid is the child's process id.
func (c *Child) Pid() int { return c.cmd.Process.Pid }

// Failure says how the child ended, with the last lines that it wrote.
func (c *Child) Failure() error {
	how := "exit status 0"
	if c.Err != nil {
		how = c.Err.Error()
	}
	return fmt.Errorf("%s ended (%s); the end of %s:\n%s", c.Name, how, c.Log, Tail(c.Log, 8))
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

// Until calls try every 50 ms until it returns nil. It gives up after the limit, or when one of the children ends.
func Until(ctx context.Context, what string, limit time.Duration, children []*Child, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	last := errors.New("not tried yet")
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err // later errors only say that time is up
		}
		for _, c := range children {
			select {
			case <-c.Done:
				return fmt.Errorf("while waiting for %s: %w", what, c.Failure())
			default:
			}
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("%s: not so within %s; the last answer was: %w", what, limit, last)
			}
			return fmt.Errorf("%s: given up: %w", what, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// StartTime tells apart two processes that had the same id: clock ticks from boot to the start of the process, or
// "" if there is none (or a zombie alone).
func StartTime(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	_, rest, ok := strings.Cut(string(b), ") ") // the name before it may hold spaces
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return fields[19]
}
