// Package qmp is a client of the QEMU Machine Protocol.
//
// It implements the Monitor interface of github.com/digitalocean/go-qemu and
// uses that module's types, with a connection of its own: replies are matched
// to commands by id, every command has a context, a message may have any
// length up to MaxMessage, an event that nobody reads is dropped and counted
// and holds nothing up, and the class of an error is kept.
package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	goqemu "github.com/digitalocean/go-qemu/qmp"
)

var _ goqemu.Monitor = (*Monitor)(nil)

// Event is an event of QEMU with QEMU's own timestamp.
type Event = goqemu.Event

// EventTime is the time at which QEMU says that the event happened.
func EventTime(e Event) time.Time {
	return time.Unix(e.Timestamp.Seconds, e.Timestamp.Microseconds*1000)
}

// reply is what a pending command waits for.
type reply struct {
	msg message
	err error
}

// Monitor is one connection to a QMP server. Its methods may be called by
// several goroutines at the same time.
type Monitor struct {
	conn    net.Conn
	log     *slog.Logger
	version goqemu.Version
	write   chan struct{} // one token: whoever holds it may write

	mu      sync.Mutex
	nextID  uint64
	pending map[uint64]chan reply
	subs    map[*Subscription]struct{}
	err     error // why the connection ended; set once, before done closes

	done   chan struct{} // the connection ended
	reader sync.WaitGroup
}

// Dial connects to the QMP server at the unix socket path, reads the greeting
// and leaves negotiation mode. ctx bounds only the dialling.
func Dial(ctx context.Context, path string, log *slog.Logger) (*Monitor, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("qmp: connect: %w", err)
	}
	return New(ctx, conn, log)
}

// New takes over conn, waits for the greeting and leaves negotiation mode.
// On error conn is closed. ctx bounds only the handshake.
func New(ctx context.Context, conn net.Conn, log *slog.Logger) (*Monitor, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	m := &Monitor{
		conn:    conn,
		log:     log,
		write:   make(chan struct{}, 1),
		pending: make(map[uint64]chan reply),
		subs:    make(map[*Subscription]struct{}),
		done:    make(chan struct{}),
	}
	m.write <- struct{}{}
	lines := newLineReader(conn)

	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	greeting, err := m.greet(lines)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, &ConnError{Op: "greeting", Err: err}
	}
	m.version = greeting

	m.reader.Add(1)
	go func() {
		defer m.reader.Done()
		m.read(lines)
	}()
	if err := m.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		_ = m.Disconnect()
		return nil, err
	}
	return m, nil
}

func (m *Monitor) greet(lines *lineReader) (goqemu.Version, error) {
	for {
		line, err := lines.next()
		if err != nil {
			return goqemu.Version{}, err
		}
		msg, err := decodeMessage(line)
		if err != nil {
			return goqemu.Version{}, err
		}
		switch msg.kind {
		case kindGreeting:
			return msg.greeting, nil
		case kindEvent: // not allowed before the greeting, harmless
		default:
			return goqemu.Version{}, errors.New("no greeting: is this a QMP socket?")
		}
	}
}

// read dispatches messages until the connection ends.
func (m *Monitor) read(lines *lineReader) {
	for {
		line, err := lines.next()
		if err != nil {
			m.fail(&ConnError{Op: "read", Err: err})
			return
		}
		msg, err := decodeMessage(line)
		if err != nil {
			m.fail(&ConnError{Op: "read", Err: err})
			return
		}
		switch msg.kind {
		case kindEvent:
			m.publish(msg.event)
		case kindReturn, kindError:
			m.deliver(msg)
		case kindGreeting:
			m.fail(&ConnError{Op: "read", Err: errors.New("second greeting")})
			return
		}
	}
}

func (m *Monitor) deliver(msg message) {
	m.mu.Lock()
	ch, ok := m.pending[msg.id]
	if ok && msg.hasID {
		delete(m.pending, msg.id)
	}
	m.mu.Unlock()
	if !ok || !msg.hasID {
		// The caller gave up on it, or QEMU could not parse the command.
		m.log.Debug("qmp reply to no pending command", "id", msg.id, "class", msg.class, "desc", msg.desc)
		return
	}
	ch <- reply{msg: msg} // capacity 1, one sender
}

// fail ends the connection with err; only the first call counts.
func (m *Monitor) fail(err error) {
	m.mu.Lock()
	if m.err != nil {
		m.mu.Unlock()
		return
	}
	m.err = err
	pending, subs := m.pending, m.subs
	m.pending, m.subs = nil, nil
	m.mu.Unlock()

	_ = m.conn.Close()
	for _, ch := range pending {
		ch <- reply{err: err}
	}
	for s := range subs {
		s.end()
	}
	close(m.done)
}

// Version is the QEMU version of the greeting.
func (m *Monitor) Version() goqemu.Version { return m.version }

// Done is closed when the connection has ended.
func (m *Monitor) Done() <-chan struct{} { return m.done }

// Err says why the connection ended; nil while it is alive.
func (m *Monitor) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// Connect reports whether the monitor is usable. The monitor is connected
// from its construction on; the method exists for go-qemu's interface.
func (m *Monitor) Connect() error { return m.Err() }

// Disconnect closes the connection. Pending commands fail with ErrClosed. It
// returns when the monitor's goroutine has ended, and may be called again.
func (m *Monitor) Disconnect() error {
	m.fail(ErrClosed)
	m.reader.Wait()
	return nil
}

// command is a command on the wire.
type command struct {
	Execute string `json:"execute"`
	Args    any    `json:"arguments,omitempty"`
	ID      uint64 `json:"id"`
}

// Execute runs one command. args is marshalled as its arguments, nil for none;
// the return value is unmarshalled into into unless that is nil. An error
// reply is returned as *Error, a lost connection as *ConnError. When ctx ends
// first the command may still take effect in QEMU.
func (m *Monitor) Execute(ctx context.Context, name string, args any, into any) error {
	msg, err := m.roundTrip(ctx, name, args)
	if err != nil {
		return err
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(msg.ret, into); err != nil {
		return fmt.Errorf("qmp: %s: decode reply: %w", name, err)
	}
	return nil
}

func (m *Monitor) roundTrip(ctx context.Context, name string, args any) (message, error) {
	ch := make(chan reply, 1)
	m.mu.Lock()
	if m.err != nil {
		m.mu.Unlock()
		return message{}, m.err
	}
	m.nextID++
	id := m.nextID
	m.pending[id] = ch
	m.mu.Unlock()

	line, err := json.Marshal(command{Execute: name, Args: args, ID: id})
	if err == nil {
		err = m.send(ctx, append(line, '\n'))
	}
	if err != nil {
		m.forget(id)
		return message{}, fmt.Errorf("qmp: %s: %w", name, err)
	}
	select {
	case r := <-ch:
		switch {
		case r.err != nil:
			return message{}, fmt.Errorf("qmp: %s: %w", name, r.err)
		case r.msg.kind == kindError:
			return r.msg, &Error{Command: name, Class: r.msg.class, Desc: r.msg.desc}
		}
		return r.msg, nil
	case <-ctx.Done():
		m.forget(id)
		return message{}, fmt.Errorf("qmp: %s: %w", name, ctx.Err())
	}
}

func (m *Monitor) forget(id uint64) {
	m.mu.Lock()
	delete(m.pending, id)
	m.mu.Unlock()
}

// send writes one line. A line that could be written only in part makes the
// connection useless, so the connection ends then.
func (m *Monitor) send(ctx context.Context, line []byte) error {
	select {
	case <-m.write:
	case <-ctx.Done():
		return ctx.Err()
	case <-m.done:
		return m.Err()
	}
	defer func() { m.write <- struct{}{} }()
	if err := m.conn.SetWriteDeadline(time.Time{}); err != nil {
		return &ConnError{Op: "write", Err: err}
	}
	stop := context.AfterFunc(ctx, func() { _ = m.conn.SetWriteDeadline(time.Unix(1, 0)) })
	n, err := m.conn.Write(line)
	stop()
	if err == nil {
		return nil
	}
	cerr := &ConnError{Op: "write", Err: err}
	if n > 0 || ctx.Err() == nil {
		m.fail(cerr)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return cerr
}

// Run sends one command in JSON and returns the whole reply in JSON, for
// go-qemu's interface. An id in the command is replaced. It has no time limit;
// Execute is the better choice.
func (m *Monitor) Run(raw []byte) ([]byte, error) {
	var c struct {
		Execute string          `json:"execute"`
		Args    json.RawMessage `json:"arguments"`
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, fmt.Errorf("qmp: decode command: %w", err)
	}
	var args any
	if len(c.Args) > 0 {
		args = c.Args
	}
	msg, err := m.roundTrip(context.Background(), c.Execute, args)
	if err != nil {
		return nil, err
	}
	return msg.raw, nil
}

// Closed tells whether err means that the connection is gone, as opposed to a
// command that QEMU refused.
func Closed(err error) bool {
	var c *ConnError
	return errors.Is(err, ErrClosed) || errors.As(err, &c) || errors.Is(err, io.EOF)
}
