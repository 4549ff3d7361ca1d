// Package client calls the coordinator of a cluster: it finds the leader,
// follows it when it changes, and asks again for a bounded time while there is
// none. Every call of the service may be repeated, so it repeats them.
package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
)

// ErrUnreachable says that no leader answered in time.
var ErrUnreachable = errors.New("no coordinator answers")

// Config says how to reach the coordinators.
type Config struct {
	Coordinators []string // host:port of replicas, any of them, at least one
	Dial         func(address string) vftv1connect.CoordinatorServiceClient
	Patience     time.Duration // how long to look for a leader; 0: 30 s
	Attempt      time.Duration // bound of one unary call; 0: 5 s
	Log          *slog.Logger  // nil: none
}

// Client calls whichever replica leads. It may be used concurrently.
type Client struct {
	cfg Config

	mu      sync.Mutex
	clients map[string]vftv1connect.CoordinatorServiceClient
	known   []string
	current int // index in known of whom to ask first
}

// New returns a client; it connects when first used.
func New(cfg Config) *Client {
	if cfg.Patience <= 0 {
		cfg.Patience = 30 * time.Second
	}
	if cfg.Attempt <= 0 {
		cfg.Attempt = 5 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Client{cfg: cfg, clients: map[string]vftv1connect.CoordinatorServiceClient{}, known: slices.Clone(cfg.Coordinators)}
}

// Address is the replica that the next call asks first, the leader as far as
// is known.
func (c *Client) Address() string {
	address, _ := c.target()
	return address
}

func (c *Client) target() (string, vftv1connect.CoordinatorServiceClient) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.known) == 0 {
		return "", nil
	}
	address := c.known[c.current]
	client := c.clients[address]
	if client == nil {
		client = c.cfg.Dial(address)
		c.clients[address] = client
	}
	return address, client
}

// turn decides whom to ask after address failed with err, and reports whether
// it named the leader.
func (c *Client) turn(address string, err error) bool {
	hint := leaderHint(err)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known[c.current] != address {
		return false // another call has turned already
	}
	if hint != "" && hint != address {
		i := slices.Index(c.known, hint)
		if i < 0 {
			i = len(c.known)
			c.known = append(c.known, hint)
		}
		c.current = i
		return true
	}
	c.current = (c.current + 1) % len(c.known)
	return false
}

func leaderHint(err error) string {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return ""
	}
	for _, d := range ce.Details() {
		if m, err := d.Value(); err == nil {
			if h, ok := m.(*vftv1.LeaderHint); ok {
				return h.GetAddress()
			}
		}
	}
	return ""
}

// passing tells whether asking again, there or elsewhere, may help.
func passing(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded, connect.CodeCanceled, connect.CodeAborted:
		return true
	default:
		return !connect.IsWireError(err) // not an answer: the connection failed
	}
}

// search is one search for a leader, bounded in time.
type search struct {
	client *Client
	began  time.Time
	pause  time.Duration
	hints  int
	last   error
}

const (
	firstPause = 50 * time.Millisecond
	longPause  = time.Second
)

func (c *Client) search() *search {
	return &search{client: c, began: time.Now(), pause: firstPause}
}

// progress notes that somebody answered.
func (s *search) progress() { *s = *s.client.search() }

// again waits as needed after address failed with err; its error says that
// it is of no use to go on.
func (s *search) again(ctx context.Context, address string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !passing(err) {
		return err
	}
	s.last = err
	followed := s.client.turn(address, err)
	if time.Since(s.began) > s.client.cfg.Patience {
		s.client.mu.Lock()
		asked := strings.Join(s.client.known, ", ")
		s.client.mu.Unlock()
		return fmt.Errorf("%w for %s (asked %s): %w", ErrUnreachable, s.client.cfg.Patience, asked, s.last)
	}
	s.client.cfg.Log.Debug("asking another coordinator", "failed", address, "err", err, "followed", followed)
	if followed {
		// Two replicas may point at one another for a moment.
		if s.hints++; s.hints%4 != 0 {
			return nil
		}
	}
	timer := time.NewTimer(s.pause)
	defer timer.Stop()
	s.pause = min(2*s.pause, longPause)
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// call makes one unary call with the leader. attempt bounds each try, 0: only ctx does.
func call[Req, Resp any](ctx context.Context, c *Client, what string, attempt time.Duration, req *Req,
	f func(vftv1connect.CoordinatorServiceClient, context.Context, *connect.Request[Req]) (*connect.Response[Resp], error),
) (*Resp, error) {
	s := c.search()
	for {
		address, client := c.target()
		if client == nil {
			return nil, fmt.Errorf("%s: %w: no address is configured", what, ErrUnreachable)
		}
		resp, err := func() (*connect.Response[Resp], error) {
			if attempt > 0 {
				bounded, cancel := context.WithTimeout(ctx, attempt)
				defer cancel()
				return f(client, bounded, connect.NewRequest(req))
			}
			return f(client, ctx, connect.NewRequest(req))
		}()
		if err == nil {
			return resp.Msg, nil
		}
		if err := s.again(ctx, address, err); err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
	}
}
