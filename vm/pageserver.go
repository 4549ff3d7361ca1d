package vm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mpirun-vft/vft/vm/stream"
)

const (
	// clusterPages are read and sent together, aligned, around a page that was
	// asked for: what is next to it is likely to be needed soon, and a store
	// keeps neighbours together.
	clusterPages = 32
	// batchPages are sent in the background in one piece. A page that is asked
	// for waits until the piece before it has gone out.
	batchPages = 16
	// demandWorkers read pages that were asked for, hotReaders those that are
	// known to be needed first; they wait for the store rather than compute.
	demandWorkers = 8
	hotReaders    = 4
	// maxYield is how long the background waits for a guest that asks without
	// end, per batch.
	maxYield = 2 * time.Millisecond
)

// pageServer is the source of a post-copy migration: it gives a running guest
// the pages that it asks for, and all others in the background.
type pageServer struct {
	conn  net.Conn
	pc    *stream.Postcopy
	saved Saved
	hot   []PageRange

	out      *lane
	sent     []bitmap // by block; under out
	clusters []bitmap // those that were sent ahead of time; by block, atomic
	demands  chan demand
	ended    atomic.Bool // all has been sent
	count    fillCounters
}

// demand is a page that the guest waits for.
type demand struct {
	block  int
	number uint64
	at     time.Time
}

func newPageServer(conn net.Conn, pc *stream.Postcopy, saved Saved, hot []PageRange) *pageServer {
	s := &pageServer{conn: conn, pc: pc, saved: saved, hot: hot, out: newLane(), demands: make(chan demand, 256)}
	for _, b := range pc.Blocks() {
		s.sent = append(s.sent, newBitmap(b.Pages()))
		s.clusters = append(s.clusters, newBitmap((b.Pages()+clusterPages-1)/clusterPages))
	}
	return s
}

// run sends what comes before the pages and serves until QEMU confirms that the
// guest has all of its memory. It closes the connection.
func (s *pageServer) run(ctx context.Context, begin []byte) error {
	defer func() { _ = s.conn.Close() }()
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := s.conn.Write(begin); err != nil {
		return fmt.Errorf("send the state of the devices: %w", err)
	}
	g.Go(func() error { return s.requests(ctx) })
	for range demandWorkers {
		g.Go(func() error { return s.serve(ctx) })
	}
	g.Go(func() error { return s.background(ctx) })
	return g.Wait()
}

// requests reads what QEMU asks for.
func (s *pageServer) requests(ctx context.Context) error {
	defer close(s.demands)
	r := s.pc.NewRequestReader(bufio.NewReader(s.conn))
	for {
		q, err := r.Next()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, io.EOF) && s.ended.Load():
			return nil
		case errors.Is(err, io.EOF):
			return errors.New("qemu ended the connection while memory was still missing")
		case err != nil:
			return fmt.Errorf("read requests for pages: %w", err)
		case q.Shut && q.Status != 0:
			return fmt.Errorf("qemu could not take the guest's memory (status %d)", q.Status)
		case q.Shut && !s.ended.Load():
			return errors.New("qemu ended the restore while memory was still missing")
		case q.Shut:
			return nil
		}
		now := time.Now()
		for off := q.Offset; off < q.Offset+q.Length; off += stream.PageSize {
			s.out.ask()
			select {
			case s.demands <- demand{block: q.Block, number: off / stream.PageSize, at: now}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// serve sends pages that were asked for, and then their neighbours.
func (s *pageServer) serve(ctx context.Context) error {
	one, many := newBatch(s.pc, 1), newBatch(s.pc, clusterPages)
	for d := range s.demands {
		err := s.read(ctx, one, d.block, d.number)
		if err == nil {
			var n int
			n, err = s.send(one, true)
			s.count.demanded.Add(int64(n))
		}
		s.out.answered()
		if err != nil {
			return err
		}
		s.count.latency.note(time.Since(d.at))
		if err := s.ahead(ctx, many, d); err != nil {
			return err
		}
	}
	return nil
}

// ahead sends the rest of the cluster of a page, unless something else is
// asked for meanwhile.
func (s *pageServer) ahead(ctx context.Context, b *batch, d demand) error {
	cluster := d.number / clusterPages
	if !s.clusters[d.block].setAtomic(cluster) {
		return nil
	}
	end := min((cluster+1)*clusterPages, s.pc.Blocks()[d.block].Pages())
	for n := cluster * clusterPages; n < end; n++ {
		if len(s.demands) > 0 {
			break
		}
		if n == d.number {
			continue
		}
		if err := s.read(ctx, b, d.block, n); err != nil {
			return err
		}
	}
	n, err := s.send(b, false)
	s.count.ahead.Add(int64(n))
	return err
}

// read adds a page to a batch.
func (s *pageServer) read(ctx context.Context, b *batch, block int, number uint64) error {
	page := b.page()
	zero, err := s.saved.Page(ctx, block, number, page)
	if err != nil {
		return &PageError{Block: s.pc.Blocks()[block].Name, Number: number, Err: err}
	}
	if zero {
		b.addZero(block, number)
	} else {
		b.add(block, number, page)
	}
	return nil
}

// send sends those pages of a batch that have not been sent, empties it and
// returns their number. QEMU takes a page that comes twice for a failure.
func (s *pageServer) send(b *batch, urgent bool) (int, error) {
	defer b.reset()
	if len(b.pages) == 0 {
		return 0, nil
	}
	s.out.enter(urgent)
	defer s.out.leave()
	wire, n := b.filter(func(block int, number uint64) bool { return s.sent[block].set(number) })
	if n == 0 {
		return 0, nil
	}
	if _, err := s.conn.Write(wire); err != nil {
		return 0, fmt.Errorf("send pages: %w", err)
	}
	return n, nil
}

// background sends the hot pages, then all others, then the end.
func (s *pageServer) background(ctx context.Context) error {
	if err := s.sendHot(ctx); err != nil {
		return err
	}
	b := newBatch(s.pc, batchPages)
	for i, bl := range s.pc.Blocks() {
		err := eachPage(ctx, s.saved, i, bl, func(number uint64, data []byte) error {
			b.add(i, number, data)
			if b.full() {
				return s.sendBulk(ctx, b)
			}
			return ctx.Err()
		})
		if err != nil {
			return err
		}
		if err := s.sendBulk(ctx, b); err != nil {
			return err
		}
	}
	s.out.enter(false)
	defer s.out.leave()
	s.ended.Store(true)
	if _, err := s.conn.Write(s.pc.End()); err != nil {
		return fmt.Errorf("send the end: %w", err)
	}
	return nil
}

func (s *pageServer) sendBulk(ctx context.Context, b *batch) error {
	s.out.yield(ctx, maxYield)
	n, err := s.send(b, false)
	s.count.background.Add(int64(n))
	if err != nil {
		return err
	}
	return ctx.Err()
}

// sendHot sends the pages that are likely to be needed first, in about their
// order.
func (s *pageServer) sendHot(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(hotReaders)
	for _, r := range s.hot {
		for first := r.First; first < r.First+r.Count && ctx.Err() == nil; first += batchPages {
			end := min(first+batchPages, r.First+r.Count)
			g.Go(func() error {
				b := newBatch(s.pc, batchPages)
				for n := first; n < end; n++ {
					if err := s.read(ctx, b, r.Block, n); err != nil {
						return err
					}
				}
				return s.sendBulk(ctx, b)
			})
		}
	}
	return g.Wait()
}

// checkHot leaves out of the ranges what is not in the blocks.
func checkHot(ranges []PageRange, blocks []stream.Block) []PageRange {
	var out []PageRange
	for _, r := range ranges {
		if r.Block < 0 || r.Block >= len(blocks) || r.First >= blocks[r.Block].Pages() {
			continue
		}
		r.Count = min(r.Count, blocks[r.Block].Pages()-r.First)
		out = append(out, r)
	}
	return out
}
