// Package notice looks where the end of a node's time is announced: a file, a
// URL of the provider, an environment variable of the batch system, a signal.
package notice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/mpirun-vft/vft/health"
	"github.com/mpirun-vft/vft/health/host"
)

// Announcement is what a place says.
type Announcement struct {
	Kind string    // preemption, maintenance, termination, …
	At   time.Time // when the node goes; zero: not said
	Text string
}

// source asks a place. nil means that nothing is announced.
type source func(ctx context.Context) (*Announcement, error)

// Probe asks one place.
//
// Readings: announced 0 or 1, the kind and message as the text; when it is 1,
// seconds_left, until the time that the notice names, else the grace time from
// when it was first seen.
type Probe struct {
	name   string
	grace  time.Duration
	source source
	first  time.Time // when the present notice was first seen
}

// Name implements health.Probe.
func (p *Probe) Name() string { return p.name }

// Run implements health.Probe.
func (p *Probe) Run(ctx context.Context) ([]health.Reading, error) {
	a, err := p.source(ctx)
	if err != nil && !errors.Is(err, health.ErrAbsent) {
		return nil, err
	}
	now := time.Now()
	if a == nil {
		p.first = time.Time{}
		return []health.Reading{{Metric: "announced"}}, err
	}
	if p.first.IsZero() {
		p.first = now
	}
	end := a.At
	if end.IsZero() {
		end = p.first.Add(p.grace)
	}
	text := a.Kind
	if a.Text != "" {
		text += ": " + a.Text
	}
	return []health.Reading{
		{Metric: "announced", Value: 1, Text: text},
		{Metric: "seconds_left", Value: max(0, end.Sub(now).Seconds()), Unit: "s", Text: text},
	}, nil
}

func newProbe(name string, grace time.Duration, s source) *Probe {
	return &Probe{name: "notice/" + name, grace: grace, source: s}
}

// File is a notice that is there while a file is: the file's text says more,
// see [Parse]. An empty file is a notice too.
func File(h *host.Host, name, path string, grace time.Duration) *Probe {
	return newProbe(name, grace, func(context.Context) (*Announcement, error) {
		data, err := h.ReadFile(path)
		if host.Missing(err) {
			return nil, health.Absent("no file /%s", strings.TrimPrefix(path, "/"))
		}
		if err != nil {
			return nil, err
		}
		if len(data) == 0 {
			return &Announcement{Kind: "notice"}, nil
		}
		return Parse(data)
	})
}

// Environment is the end of a batch allocation, a number of seconds since
// 1970 in an environment variable, as SLURM_JOB_END_TIME has it.
func Environment(name, variable string) *Probe {
	return newProbe(name, 0, func(context.Context) (*Announcement, error) {
		text, ok := os.LookupEnv(variable)
		if !ok {
			return nil, health.Absent("the environment has no %s", variable)
		}
		at, err := parseTime(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", variable, err)
		}
		return &Announcement{Kind: "end of allocation", At: at}, nil
	})
}

// maxBody bounds what a URL may say.
const maxBody = 64 << 10

// URL is a notice of a provider. 404 and 410 mean that there is none.
func URL(client *http.Client, name, url string, headers map[string]string, grace time.Duration) *Probe {
	return newProbe(name, grace, func(ctx context.Context) (*Announcement, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return nil, fmt.Errorf("asking for notices: %w", err)
		}
		for k, v := range headers {
			req.Header.Set(k, v)
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil, fmt.Errorf("asking for notices: %w", err)
		}
		defer resp.Body.Close() //nolint:errcheck // only read
		switch resp.StatusCode {
		case http.StatusOK:
		case http.StatusNotFound, http.StatusGone:
			return nil, nil
		default:
			return nil, fmt.Errorf("asking %s for notices: %s", url, resp.Status)
		}
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
		if err != nil {
			return nil, fmt.Errorf("reading the notices of %s: %w", url, err)
		}
		return Parse(body)
	})
}

// Signal is a notice by a signal: whoever receives the signal announces it.
type Signal struct {
	*Probe
	mu   sync.Mutex
	what *Announcement
}

// NewSignal returns a notice that has not been given.
func NewSignal(name string) *Signal {
	s := &Signal{}
	s.Probe = newProbe(name, 0, func(context.Context) (*Announcement, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.what, nil
	})
	return s
}

// Announce says that the process was told to go, and how long it has. The
// first announcement stays.
func (s *Signal) Announce(sig os.Signal, now time.Time, grace time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.what == nil {
		s.what = &Announcement{Kind: "signal", Text: sig.String(), At: now.Add(grace)}
	}
}
