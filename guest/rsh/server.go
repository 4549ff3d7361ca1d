package rsh

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

const (
	// drainGrace is how long output is waited for after the command has ended.
	drainGrace = 20 * time.Millisecond
	// killGrace is the time between SIGTERM and SIGKILL for a command whose
	// caller has gone.
	killGrace = 2 * time.Second
)

// StartFunc starts req's command in a process group of its own with the given
// standard streams.
type StartFunc func(req Request, stdin, stdout, stderr *os.File) (*exec.Cmd, error)

// Serve answers callers on l until ctx ends.
func Serve(ctx context.Context, l net.Listener, start StartFunc) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			// Out of descriptors or memory: others may free some.
			time.Sleep(50 * time.Millisecond)
			continue
		}
		wg.Go(func() {
			defer func() { _ = c.Close() }()
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer stop()
			serve(ctx, c, start)
		})
	}
}

func serve(ctx context.Context, c net.Conn, start StartFunc) {
	in := bufio.NewReaderSize(c, maxFrame)
	out := &frameWriter{w: c}
	req, err := readRequest(in)
	if err != nil {
		_ = out.send(frameFailed, []byte(err.Error()))
		return
	}
	inR, inW, err := os.Pipe()
	if err != nil {
		_ = out.send(frameFailed, []byte(err.Error()))
		return
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		closeAll(inR, inW)
		_ = out.send(frameFailed, []byte(err.Error()))
		return
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		closeAll(inR, inW, outR, outW)
		_ = out.send(frameFailed, []byte(err.Error()))
		return
	}
	cmd, err := start(req, inR, outW, errW)
	closeAll(inR, outW, errW)
	if err != nil {
		closeAll(inW, outR, errR)
		_ = out.send(frameFailed, []byte(err.Error()))
		return
	}
	ended := make(chan struct{})
	var streams sync.WaitGroup
	streams.Go(func() { forward(out, frameStdout, outR, ended) })
	streams.Go(func() { forward(out, frameStderr, errR, ended) })
	lost := make(chan struct{})
	var input sync.WaitGroup
	input.Go(func() {
		defer func() { _ = inW.Close() }()
		if !feed(in, inW) {
			close(lost)
		}
	})
	go func() {
		select {
		case <-lost:
			kill(cmd.Process.Pid, ended)
		case <-ended:
		}
	}()
	_ = cmd.Wait()
	close(ended)
	deadline := time.Now().Add(drainGrace)
	_ = outR.SetReadDeadline(deadline)
	_ = errR.SetReadDeadline(deadline)
	_ = inW.SetWriteDeadline(time.Now())
	streams.Wait()
	var status [8]byte
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		binary.BigEndian.PutUint32(status[4:], uint32(ws.Signal())) //nolint:gosec // signal numbers are small
	} else {
		binary.BigEndian.PutUint32(status[:], uint32(cmd.ProcessState.ExitCode())) //nolint:gosec // 0 to 255
	}
	_ = out.send(frameExit, status[:])
	_ = c.Close()
	input.Wait()
	// What the command left behind may go on writing; nobody listens, but its
	// pipes must not break under it.
	var rest sync.WaitGroup
	rest.Go(func() { discard(ctx, outR) })
	rest.Go(func() { discard(ctx, errR) })
	rest.Wait()
}

func discard(ctx context.Context, f *os.File) {
	defer func() { _ = f.Close() }()
	_ = f.SetReadDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Now()) })
	defer stop()
	_, _ = io.Copy(io.Discard, f)
}

// forward sends what f yields until its end, or until the command has ended
// and nothing has come for a moment.
func forward(out *frameWriter, kind byte, f *os.File, ended <-chan struct{}) {
	buf := make([]byte, maxFrame)
	for {
		n, err := f.Read(buf)
		if n > 0 && out.send(kind, buf[:n]) != nil {
			// The caller has gone: keep the pipe flowing until it is killed.
			_, _ = io.Copy(io.Discard, f)
			return
		}
		if err != nil {
			return
		}
		select {
		case <-ended:
			_ = f.SetReadDeadline(time.Now().Add(drainGrace))
		default:
		}
	}
}

// feed writes the caller's input to w. It returns false when the caller hangs
// up before the command has ended.
func feed(r io.Reader, w *os.File) bool {
	buf := make([]byte, maxFrame)
	for {
		kind, p, err := readFrame(r, buf)
		if err != nil {
			return false
		}
		switch kind {
		case frameStdin:
			// A command that has closed its input is not an error of the caller.
			_, _ = w.Write(p)
		case frameStdinEOF:
			_ = w.Close()
		default:
			return false
		}
	}
}

func kill(pid int, ended <-chan struct{}) {
	_ = syscall.Kill(-pid, syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(killGrace):
		_ = syscall.Kill(-pid, syscall.SIGKILL)
	}
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
