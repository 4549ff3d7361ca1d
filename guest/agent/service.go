package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	agentv1 "github.com/mpirun-vft/vft/api/gen/vft/agent/v1"
)

const (
	// chunkSize is the largest piece of a stream in one message.
	chunkSize = 256 << 10
	// execLimit bounds each stream of Exec's answer.
	execLimit = 1 << 20
	// poweroffDelay lets the answer to Shutdown leave the guest.
	poweroffDelay = 50 * time.Millisecond
)

// service implements agentv1connect.AgentServiceHandler.
type service struct{ a *Agent }

// coded gives err the code by which callers decide.
func coded(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errDiskFull):
		return connect.NewError(connect.CodeResourceExhausted, err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return connect.NewError(connect.CodeNotFound, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ENOEXEC):
		return connect.NewError(connect.CodePermissionDenied, err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return connect.NewError(connect.CodeCanceled, err)
	}
	var ce *connect.Error
	if errors.As(err, &ce) {
		return err
	}
	return connect.NewError(connect.CodeInternal, err)
}

// Hello tells who answers.
func (s *service) Hello(context.Context, *connect.Request[agentv1.HelloRequest]) (*connect.Response[agentv1.HelloResponse], error) {
	var up unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &up)
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	bootID, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	res := &agentv1.HelloResponse{
		AgentVersion: s.a.cfg.Version,
		BootId:       strings.TrimSpace(string(bootID)),
		Index:        uint32(s.a.cfg.Index), //nolint:gosec // validated
		Size:         uint32(s.a.cfg.Size),  //nolint:gosec // validated
		UptimeNs:     up.Nano(),
		Kernel:       unix.ByteSliceToString(uts.Release[:]),
		ClockUnixNs:  time.Now().UnixNano(),
		Hostname:     unix.ByteSliceToString(uts.Nodename[:]),
		Address:      s.a.cfg.Address,
	}
	for _, m := range s.a.mpis() {
		res.Mpi = append(res.Mpi, &agentv1.Mpi{Name: m[0], Version: m[1]})
	}
	return connect.NewResponse(res), nil
}

// Stage unpacks a tar stream.
func (s *service) Stage(_ context.Context, stream *connect.ClientStream[agentv1.StageRequest]) (*connect.Response[agentv1.StageResponse], error) {
	r, w := io.Pipe()
	feeding := make(chan struct{})
	go func() {
		defer close(feeding)
		for stream.Receive() {
			if _, err := w.Write(stream.Msg().GetData()); err != nil {
				return
			}
		}
		_ = w.CloseWithError(stream.Err()) // nil means io.EOF
	}()
	u := &unpacker{root: s.a.cfg.Root, staged: s.a.noteStaged}
	err := u.unpack(r)
	_ = r.CloseWithError(errors.New("staging has stopped"))
	if err != nil {
		// The feeder may be waiting for the caller; the end of this call ends it.
		return nil, coded(err)
	}
	<-feeding
	return connect.NewResponse(&agentv1.StageResponse{Files: u.files, Bytes: u.bytes}), nil
}

// StartProcess starts a program once per id.
func (s *service) StartProcess(_ context.Context, req *connect.Request[agentv1.StartProcessRequest]) (*connect.Response[agentv1.StartProcessResponse], error) {
	m := req.Msg
	if m.GetId() == "" {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("start a program: no id"))
	}
	spec := Spec{
		Argv: m.GetArgv(), Env: m.GetEnv(), Dir: m.GetDir(), Umask: m.GetUmask(), NoStdin: m.GetNoStdin(),
		User: User{UID: m.GetUid(), GID: m.GetGid(), Name: m.GetUserName(), Home: m.GetHome()},
	}
	for _, g := range m.GetGroups() {
		spec.User.Groups = append(spec.User.Groups, Group{GID: g.GetGid(), Name: g.GetName()})
	}
	p, already, err := s.a.start(m.GetId(), spec)
	if err != nil {
		return nil, coded(err)
	}
	return connect.NewResponse(&agentv1.StartProcessResponse{Pid: int32(p.pid), AlreadyStarted: already}), nil //nolint:gosec // pids are small
}

// Output streams output from the offsets on, then the exit.
func (s *service) Output(ctx context.Context, req *connect.Request[agentv1.OutputRequest], stream *connect.ServerStream[agentv1.OutputResponse]) error {
	p, err := s.a.process(req.Msg.GetId())
	if err != nil {
		return coded(err)
	}
	streams := []struct {
		id     agentv1.Stream
		buf    *outputBuffer
		offset uint64
	}{
		{agentv1.Stream_STREAM_STDOUT, p.stdout, req.Msg.GetStdoutOffset()},
		{agentv1.Stream_STREAM_STDERR, p.stderr, req.Msg.GetStderrOffset()},
	}
	// Headers now: the caller sees that the stream stands before there is output.
	if err := stream.Send(nil); err != nil {
		return err
	}
	for {
		changed := p.change.wait()
		status, ended := p.status()
		sent := false
		for i := range streams {
			st := &streams[i]
			data, offset := st.buf.from(st.offset, chunkSize)
			if len(data) == 0 {
				continue
			}
			err := stream.Send(&agentv1.OutputResponse{Event: &agentv1.OutputResponse_Chunk{
				Chunk: &agentv1.Chunk{Stream: st.id, Offset: offset, Data: data},
			}})
			if err != nil {
				return err
			}
			st.offset = offset + uint64(len(data))
			sent = true
		}
		if sent {
			continue
		}
		if ended {
			return stream.Send(&agentv1.OutputResponse{Event: &agentv1.OutputResponse_Exit{Exit: p.exitMessage(status)}})
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *process) exitMessage(e exitStatus) *agentv1.ExitStatus {
	return &agentv1.ExitStatus{
		Code: int32(e.code), Signal: int32(e.signal), //nolint:gosec // small numbers
		StdoutTotal: p.stdout.total(), StderrTotal: p.stderr.total(),
	}
}

// AckOutput forgets output below the offsets.
func (s *service) AckOutput(_ context.Context, req *connect.Request[agentv1.AckOutputRequest]) (*connect.Response[agentv1.AckOutputResponse], error) {
	p, err := s.a.process(req.Msg.GetId())
	if err != nil {
		return nil, coded(err)
	}
	p.stdout.ack(req.Msg.GetStdoutOffset())
	p.stderr.ack(req.Msg.GetStderrOffset())
	return connect.NewResponse(&agentv1.AckOutputResponse{}), nil
}

// StdinState tells which byte is wanted next.
func (s *service) StdinState(_ context.Context, req *connect.Request[agentv1.StdinStateRequest]) (*connect.Response[agentv1.StdinStateResponse], error) {
	p, err := s.a.process(req.Msg.GetId())
	if err != nil {
		return nil, coded(err)
	}
	offset, closed := p.stdin.state()
	return connect.NewResponse(&agentv1.StdinStateResponse{Offset: offset, Closed: closed}), nil
}

// WriteStdin takes input at an offset and waits for room.
func (s *service) WriteStdin(ctx context.Context, req *connect.Request[agentv1.WriteStdinRequest]) (*connect.Response[agentv1.WriteStdinResponse], error) {
	m := req.Msg
	p, err := s.a.process(m.GetId())
	if err != nil {
		return nil, coded(err)
	}
	if next, closed := p.stdin.state(); !closed && m.GetOffset() > next {
		return nil, connect.NewError(connect.CodeOutOfRange,
			fmt.Errorf("standard input at offset %d: byte %d is wanted next", m.GetOffset(), next))
	}
	for {
		changed := p.change.wait()
		if p.stdin.offer(m.GetOffset(), m.GetData(), m.GetEof()) {
			offset, closed := p.stdin.state()
			return connect.NewResponse(&agentv1.WriteStdinResponse{Offset: offset, Closed: closed}), nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, coded(ctx.Err())
		}
	}
}

// Signal sends a signal.
func (s *service) Signal(_ context.Context, req *connect.Request[agentv1.SignalRequest]) (*connect.Response[agentv1.SignalResponse], error) {
	p, err := s.a.process(req.Msg.GetId())
	if err != nil {
		return nil, coded(err)
	}
	ended, err := p.signal(syscall.Signal(req.Msg.GetSignal()), req.Msg.GetGroup())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("send signal %d: %w", req.Msg.GetSignal(), err))
	}
	return connect.NewResponse(&agentv1.SignalResponse{Ended: ended}), nil
}

// Wait returns when the program has ended.
func (s *service) Wait(ctx context.Context, req *connect.Request[agentv1.WaitRequest]) (*connect.Response[agentv1.WaitResponse], error) {
	p, err := s.a.process(req.Msg.GetId())
	if err != nil {
		return nil, coded(err)
	}
	for {
		changed := p.change.wait()
		if status, ended := p.status(); ended {
			return connect.NewResponse(&agentv1.WaitResponse{Exit: p.exitMessage(status)}), nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, coded(ctx.Err())
		}
	}
}

// Collect streams a tar of what changed.
func (s *service) Collect(_ context.Context, req *connect.Request[agentv1.CollectRequest], stream *connect.ServerStream[agentv1.CollectResponse]) error {
	dir := req.Msg.GetDir()
	if !filepath.IsAbs(dir) {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("collect %q: want an absolute directory", dir))
	}
	c := &collector{root: s.a.cfg.Root, known: s.a.baseline(req.Msg.GetToken()), now: time.Now}
	if err := c.collect(filepath.Clean(dir), &collectWriter{stream: stream}); err != nil {
		return coded(err)
	}
	return stream.Send(&agentv1.CollectResponse{Event: &agentv1.CollectResponse_Done{Done: &agentv1.CollectDone{
		Token: s.a.remember(c.next), Files: c.files, Bytes: c.bytes, Skipped: c.skipped,
	}}})
}

// collectWriter sends what is written as messages.
type collectWriter struct {
	stream *connect.ServerStream[agentv1.CollectResponse]
}

// Write implements [io.Writer].
func (w *collectWriter) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n := min(len(b)-done, chunkSize)
		err := w.stream.Send(&agentv1.CollectResponse{Event: &agentv1.CollectResponse_Data{Data: b[done : done+n]}})
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// Exec runs a short command to its end.
func (s *service) Exec(ctx context.Context, req *connect.Request[agentv1.ExecRequest]) (*connect.Response[agentv1.ExecResponse], error) {
	m := req.Msg
	limit := 10 * time.Second
	if ms := m.GetTimeoutMs(); ms != 0 {
		limit = time.Duration(ms) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
	cmd, err := s.a.launcher.command(Spec{Argv: m.GetArgv(), Env: env, Dir: s.a.cfg.Root})
	if err != nil {
		return nil, coded(err)
	}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Credential = nil
	}
	var stdout, stderr limitedBuffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(m.GetStdin()), &stdout, &stderr
	cmd.WaitDelay = exitGrace
	if err := s.a.launcher.run(cmd, 0o022); err != nil {
		return nil, coded(fmt.Errorf("start %s: %w", m.GetArgv()[0], err))
	}
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	err = cmd.Wait()
	stop()
	if ctx.Err() != nil {
		return nil, connect.NewError(connect.CodeDeadlineExceeded, fmt.Errorf("%s did not end within %s", m.GetArgv()[0], limit))
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		return nil, coded(err)
	}
	res := &agentv1.ExecResponse{Stdout: stdout.b, Stderr: stderr.b}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		res.Signal = int32(ws.Signal()) //nolint:gosec // small
	} else {
		res.Code = int32(cmd.ProcessState.ExitCode()) //nolint:gosec // small
	}
	return connect.NewResponse(res), nil
}

// limitedBuffer keeps the first execLimit bytes.
type limitedBuffer struct{ b []byte }

// Write implements [io.Writer].
func (l *limitedBuffer) Write(p []byte) (int, error) {
	l.b = append(l.b, p[:min(len(p), execLimit-len(l.b))]...)
	return len(p), nil
}

// SetClock steps the wall clock.
func (s *service) SetClock(_ context.Context, req *connect.Request[agentv1.SetClockRequest]) (*connect.Response[agentv1.SetClockResponse], error) {
	ts := unix.NsecToTimespec(req.Msg.GetUnixNs())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return nil, coded(fmt.Errorf("set the guest's clock: %w", err))
	}
	return connect.NewResponse(&agentv1.SetClockResponse{}), nil
}

// Shutdown powers the guest off.
func (s *service) Shutdown(context.Context, *connect.Request[agentv1.ShutdownRequest]) (*connect.Response[agentv1.ShutdownResponse], error) {
	if s.a.cfg.Poweroff != nil {
		time.AfterFunc(poweroffDelay, s.a.cfg.Poweroff)
	}
	return connect.NewResponse(&agentv1.ShutdownResponse{}), nil
}
