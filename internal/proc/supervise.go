package proc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// Child is a daemon that a Supervisor keeps running.
type Child struct {
	Name string
	Argv []string
}

// ExitConfig is the exit status by which a child says that starting it again
// would not help (sysexits' EX_CONFIG).
const ExitConfig = 78

// ErrChildConfig says that a child ended with ExitConfig.
var ErrChildConfig = errors.New("cannot run as configured")

// Bounds of the wait before a child that ended is started again.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
	// steady is how long a child must have run to be started at once again.
	steady = 10 * time.Second
	// stopGrace is the time between SIGTERM and SIGKILL at the end.
	stopGrace = 5 * time.Second
)

// Supervise runs the children, starts each again when it ends, and ends them
// with SIGTERM when ctx ends. Signals that come from pass on to all children;
// nil: none are. It returns early only when a child says that it cannot run as
// configured.
func Supervise(ctx context.Context, log *slog.Logger, children []Child, pass <-chan os.Signal) error {
	g, ctx := errgroup.WithContext(ctx)
	running := &processes{}
	for _, c := range children {
		g.Go(func() error { return supervise(ctx, log.With("child", c.Name), c, running) })
	}
	g.Go(func() error {
		for {
			select {
			case s := <-pass:
				running.signal(s)
			case <-ctx.Done():
				return nil
			}
		}
	})
	return g.Wait()
}

// processes are the children that run now.
type processes struct {
	mu   sync.Mutex
	list map[*os.Process]struct{}
}

func (p *processes) add(c *os.Process) (remove func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.list == nil {
		p.list = map[*os.Process]struct{}{}
	}
	p.list[c] = struct{}{}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.list, c)
	}
}

func (p *processes) signal(s os.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.list {
		_ = c.Signal(s) // one that has ended starts anew with what the signal is about
	}
}

func supervise(ctx context.Context, log *slog.Logger, c Child, running *processes) error {
	backoff := minBackoff
	for {
		begun := time.Now()
		cmd := exec.CommandContext(ctx, c.Argv[0], c.Argv[1:]...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = stopGrace
		err := cmd.Start()
		if err == nil {
			remove := running.add(cmd.Process)
			err = cmd.Wait()
			remove()
		}
		if ctx.Err() != nil {
			return nil
		}
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == ExitConfig {
			return fmt.Errorf("%s %w", c.Name, ErrChildConfig)
		}
		if time.Since(begun) > steady {
			backoff = minBackoff
		}
		log.Warn("a daemon ended; starting it again", "err", err, "after", backoff)
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
			return nil
		}
		backoff = min(2*backoff, maxBackoff)
	}
}
