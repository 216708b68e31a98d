package proc

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func script(t *testing.T, text string) *Group {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "program"), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return NewGroup(dir, filepath.Join(dir, "logs"))
}

func TestGroupRestartsAProgramThatExits(t *testing.T) {
	count := filepath.Join(t.TempDir(), "count")
	g := script(t, "echo >>"+count+"; [ $(wc -l <"+count+") -gt 1 ] && exec sleep 60; exit 3")
	if err := g.Start(Command{Name: "program"}); err != nil {
		t.Fatal(err)
	}
	err := g.Until(context.Background(), "a second start", 5*time.Second, func(context.Context) error {
		if b, _ := os.ReadFile(count); len(b) < 2 {
			return errors.New("one start")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	g.Kill()
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("Kill took %s", took)
	}
}

func TestGroupFailsAfterRepeatedExits(t *testing.T) {
	g := script(t, "echo no config; exit 3")
	if err := g.Start(Command{Name: "program", As: "failing"}); err != nil {
		t.Fatal(err)
	}
	err := g.Until(context.Background(), "a condition", 20*time.Second, func(context.Context) error { return errors.New("no") })
	for _, want := range []string{"a condition", "failing ended", "exit status 3", "no config"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q: %v", want, err)
		}
	}
}

func TestUntilReturnsAfterTheLimit(t *testing.T) {
	g := script(t, "")
	err := g.Until(context.Background(), "readiness", 200*time.Millisecond, func(context.Context) error { return errors.New("not ready") })
	if err == nil || !strings.Contains(err.Error(), "readiness: not within 200ms; last error: not ready") {
		t.Errorf("got %v", err)
	}
}

func TestStartTime(t *testing.T) {
	if StartTime(os.Getpid()) == "" || StartTime(1<<30) != "" {
		t.Errorf("own %q, of no process %q", StartTime(os.Getpid()), StartTime(1<<30))
	}
}
