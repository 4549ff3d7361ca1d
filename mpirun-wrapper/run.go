package wrapper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"

	"github.com/mpirun-vft/vft/api/client"
)

// run is one job, from the command line to its exit code.
type run struct {
	cmd  *Command
	deps Deps
	plan *Plan
	id   string

	screen *screen
	report *reporter
	stdout *outStream
	stderr *outStream
	stdin  *inStream

	conn   *Connection
	client *client.Client
	files  *collector
	view   *view
	marks  marks
	stop   *stopper

	fileProblem bool // a file could not be written here; guarded by filesMu
	filesMu     sync.Mutex
}

// Run runs cmd to its end and returns the exit code for the process: the
// program's own, 128+n when signal n ended it, or one of the Exit constants
// together with the error to print.
func Run(ctx context.Context, cmd *Command, deps Deps) (int, error) {
	r := &run{cmd: cmd, deps: deps.complete()}
	r.id = r.deps.NewID()
	r.screen = newScreen(r.deps.Stdout, r.deps.Stderr, cmd.Quiet)
	r.report = &reporter{screen: r.screen, job: r.id}
	defer r.screen.end()
	if cmd.Events != "" {
		w, err := r.deps.Events(cmd.Events)
		if err != nil {
			return ExitCode(err), err
		}
		if cmd.Events == "-" {
			w = screenOut{r.screen}
		}
		r.report.lines = w
		defer r.report.close()
	}
	r.stdout = newOutStream("stdout", r.deps.TempDir, r.screen.out, r.report.notice)
	r.stderr = newOutStream("stderr", r.deps.TempDir, r.screen.err, r.report.notice)
	r.stdin = newInStream(r.deps.Stdin, r.deps.TempDir)
	r.view = newView()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.stop = newStopper(ctx, r, cancel)
	defer r.stop.close()

	code, err := r.whole(ctx)
	if sig := r.stop.signal(); sig != 0 {
		return 128 + int(sig), nil
	}
	return code, err
}

// screenOut has events for stdout share it with the program's output.
type screenOut struct{ screen *screen }

func (s screenOut) Write(p []byte) (int, error) {
	if err := s.screen.out(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close implements io.Closer; there is nothing to close.
func (screenOut) Close() error { return nil }

// whole is the sequence of a job.
func (r *run) whole(ctx context.Context) (int, error) {
	r.screen.progress("vft: starting")
	embedded := r.cmd.Cluster == ""
	if embedded { // what is wrong with the command is told before anything starts
		self := Resources{Embedded: true, Hostname: r.deps.Hostname, Nodes: []Node{{Name: r.deps.Hostname, CPUs: r.deps.CPUs}}}
		plan, err := r.cmd.Plan(self)
		if err != nil {
			return ExitCode(err), err
		}
		r.plan = plan
	}
	if _, err := r.cmd.stageRequest(""); err != nil {
		return ExitCode(err), err
	}
	conn, cleanup, err := r.deps.Cluster(ctx, r.cmd, r.plan)
	if cleanup != nil {
		defer cleanup()
	}
	if err != nil {
		return codeOr(err, ExitUnavailable), err
	}
	r.conn = conn
	conf := client.Config{
		Coordinators: conn.Coordinators, Dial: conn.Coordinator, Patience: r.deps.Timing.Patience, Log: r.deps.Log,
	}
	r.client = client.New(conf)
	// A cluster that was never there is not waited for as long as one that a
	// running job has lost.
	conf.Patience = r.deps.Timing.Contact
	answer, err := client.New(conf).ListNodes(ctx)
	if err != nil {
		return codeOr(err, ExitUnavailable), err
	}
	if err := r.submit(ctx, answer.GetNodes(), embedded); err != nil {
		return codeOr(err, ExitUnavailable), err
	}
	return r.supervise(ctx)
}

func codeOr(err error, code int) int {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return code
}

// submit brings the program to the cluster and hands the job in.
func (r *run) submit(ctx context.Context, nodes []*vftv1.Node, embedded bool) error {
	res := resources(nodes, r.deps.Hostname, embedded)
	if r.plan == nil {
		plan, err := r.cmd.Plan(res)
		if err != nil {
			return err
		}
		r.plan = plan
	}
	image := r.chooseImage(nodes)
	request, err := r.cmd.stageRequest(image)
	if err != nil {
		return err
	}
	r.screen.progress("vft: gathering the program and its files")
	archive, err := r.buildArchive(ctx, request)
	if err != nil {
		return &Error{Code: codeOr(err, ExitData), Msg: err.Error(), Err: err}
	}
	defer archive.close()
	spec := r.spec(image, archive)
	r.screen.progress("vft: sending the program to the nodes")
	if err := r.upload(ctx, archive, res.Nodes); err != nil {
		return err
	}
	r.files = &collector{dir: r.cmd.Dir, job: r.id, sidecar: r.conn.Sidecar}
	// From here on a signal ends the job instead of what we are doing.
	if !r.stop.submitting() {
		return context.Cause(ctx)
	}
	if _, err = r.client.SubmitJob(ctx, spec); err != nil && !errors.Is(err, client.ErrUnreachable) && ctx.Err() == nil {
		return &Error{Code: ExitConfig, Msg: "the cluster does not take the job: " + err.Error(), Err: err}
	}
	return err
}

// supervise keeps a submitted job company until its end.
func (r *run) supervise(ctx context.Context) (int, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer func() {
		r.stdout.close()
		r.stderr.close()
		r.stdin.close()
	}()
	var wg sync.WaitGroup
	defer cancel(nil)
	for _, f := range []func(context.Context){r.watch, r.renew, r.collectEpochs, r.showProgress, r.stdin.read} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			f(ctx)
		}()
	}
	type outcome struct {
		code int
		err  error
	}
	done := make(chan outcome, 1)
	wg.Add(1)
	go func() {
		defer wg.Done()
		code, err := r.follow(ctx)
		done <- outcome{code, err}
	}()
	select {
	case o := <-done:
		cancel(nil)
		wg.Wait()
		return o.code, o.err
	case <-r.stop.abandoned():
	}
	// Usually all return at once, but one may be stuck in writing to a
	// terminal or pipe that nobody reads.
	cancel(errAbandoned)
	all := make(chan struct{})
	go func() { wg.Wait(); close(all) }()
	select {
	case <-all:
	case <-time.After(500 * time.Millisecond):
	}
	return 128 + int(r.stop.signal()), nil
}

// follow attaches to the program of one incarnation after another.
func (r *run) follow(ctx context.Context) (int, error) {
	pause := time.Duration(0)
	var over uint64 // incarnations up to this one are over
	for {
		s, err := r.view.wait(ctx, func(s *snapshot) bool {
			return s.err != nil || s.ended() || s.attachable() && s.incarnation > over
		})
		switch {
		case err != nil:
			return ExitSoftware, err
		case s.ended():
			return r.endOf(s.job)
		case s.err != nil:
			return codeOr(s.err, ExitUnavailable), s.err
		}
		exit, err := r.attachTo(ctx, s)
		if err == nil {
			code, over2, err := r.finish(ctx, s, exit)
			if !over2 {
				return code, err
			}
			over = s.incarnation
			continue
		}
		var show *showError
		if errors.As(err, &show) {
			return r.cannotShow(ctx, show)
		}
		r.deps.Log.Debug("not attached", "err", err)
		pause = min(max(20*time.Millisecond, 2*pause), r.deps.Timing.Retry)
		if time.Since(s.at) < pause { // a fresh view deserves a fresh attempt
			pause = 20 * time.Millisecond
		}
		r.view.waitChange(ctx, pause)
	}
}

// attachTo attaches as long as the guests are where s says.
func (r *run) attachTo(ctx context.Context, s *snapshot) (*vftv1.AttachExit, error) {
	ctx, cancel := r.during(ctx, s)
	defer cancel()
	return r.attach(ctx, s.incarnation, s.address(0))
}

// during returns a context that ends when s is no longer how things are: a
// newer incarnation, another node for guest 0, or the job's end.
func (r *run) during(ctx context.Context, s *snapshot) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = r.view.wait(ctx, func(now *snapshot) bool {
			return now.ended() || now.incarnation != s.incarnation || now.address(0) != s.address(0)
		})
		cancel()
	}()
	return ctx, func() { cancel(); <-done }
}

// finish takes the files and reports the program's exit. over: this was not
// the end, the job goes on in a newer incarnation.
func (r *run) finish(ctx context.Context, s *snapshot, exit *vftv1.AttachExit) (code int, over bool, err error) {
	code = int(exit.GetCode())
	if exit.GetSignal() != 0 {
		code = 128 + int(exit.GetSignal())
	}
	collected := r.collectFinally(ctx, s)
	if now := r.view.now(); !now.ended() && now.incarnation != s.incarnation {
		return 0, true, nil
	}
	accepted, err := r.client.FinishJob(ctx, r.id, s.incarnation, &vftv1.Exit{Cause: vftv1.ExitCause_EXIT_CAUSE_PROGRAM, Code: int32(code)})
	switch {
	case err != nil:
		r.report.notice("unfinished", fmt.Sprintf("the program ended with code %d, but the cluster could not be told: %v", code, err), nil)
	case !accepted:
		if now := r.view.now(); now.ended() {
			break
		}
		return 0, true, nil
	default:
		waiting, cancel := context.WithTimeout(ctx, r.deps.Timing.End)
		_, _ = r.view.wait(waiting, func(s *snapshot) bool { return s.ended() || s.err != nil })
		cancel()
	}
	if now := r.view.now(); now.ended() && now.job.GetExit().GetCause() > vftv1.ExitCause_EXIT_CAUSE_PROGRAM {
		code, err := r.endOf(now.job) // the program ended because somebody ended the job
		return code, false, err
	}
	if collected != nil {
		var local *fileError
		what := "some files of the working directory could not be brought back"
		if errors.As(collected, &local) {
			what = "some files could not be written here"
		}
		err := failf(ExitFiles, "%s: %w", what, collected)
		if code != 0 {
			r.report.notice("files-lost", err.Error(), nil)
			return code, false, nil
		}
		return ExitFiles, false, err
	}
	return code, false, nil
}

// endOf is the exit code of a job that ended without our doing.
func (r *run) endOf(job *vftv1.Job) (int, error) {
	e := job.GetExit()
	switch e.GetCause() {
	case vftv1.ExitCause_EXIT_CAUSE_PROGRAM:
		return int(e.GetCode()), nil
	case vftv1.ExitCause_EXIT_CAUSE_STOPPED:
		return ExitStopped, failf(ExitStopped, "the job was stopped: %s", orElse(e.GetMessage(), "no reason given"))
	case vftv1.ExitCause_EXIT_CAUSE_CLIENT_GONE:
		return ExitClientGone, failf(ExitClientGone, "the cluster heard nothing from here for too long and ended the job; was this machine suspended or cut off?")
	default:
		return ExitFailed, failf(ExitFailed, "the job was given up: %s", orElse(e.GetMessage(), "no reason given"))
	}
}

func orElse(s, instead string) string {
	if s == "" {
		return instead
	}
	return s
}

// cannotShow ends the job as mpirun does when its output is closed.
func (r *run) cannotShow(ctx context.Context, e *showError) (int, error) {
	_ = r.client.StopJob(context.WithoutCancel(ctx), r.id, "the reader of "+e.stream+" is gone", true)
	if errors.Is(e, syscall.EPIPE) || errors.Is(e, io.ErrClosedPipe) {
		return 128 + int(syscall.SIGPIPE), nil
	}
	var perr *os.PathError
	if errors.As(e, &perr) {
		return ExitFiles, failf(ExitFiles, "%s cannot be written any more, so the job was ended: %w", e.stream, perr.Err)
	}
	return ExitFiles, failf(ExitFiles, "the job was ended: %w", e)
}
