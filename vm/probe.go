package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// EngineSupport says whether an engine works on this node.
type EngineSupport struct {
	Engine Engine `json:"engine"`
	OK     bool   `json:"ok"`
	// Why says what fails when OK is false.
	Why string `json:"why,omitempty"`
}

// RestoreSupport says whether a way of restoring works on this node.
type RestoreSupport struct {
	Way RestoreWay `json:"way"`
	OK  bool       `json:"ok"`
	// Why says what fails when OK is false.
	Why string `json:"why,omitempty"`
}

// Capabilities is what a node's QEMU can do, found out by doing it.
type Capabilities struct {
	// QEMUVersion is "major.minor.micro".
	QEMUVersion string `json:"qemu_version"`
	// Accel is the accelerator to use and AccelWhy the reason.
	Accel    Accel  `json:"accel"`
	AccelWhy string `json:"accel_why"`
	// CPUModel is the model to use when nothing else is known. CPUModels are
	// the named models that this node runs in full, the best first, or the
	// default one if there is none; a job whose guests shall move needs one
	// that all its nodes have.
	CPUModel  string   `json:"cpu_model"`
	CPUModels []string `json:"cpu_models"`
	// Engines in the order of Engines().
	Engines []EngineSupport `json:"engines"`
	// RestoreWays in the order of RestoreWays().
	RestoreWays []RestoreSupport `json:"restore_ways"`
	// Cached says that the result was found in the cache.
	Cached bool `json:"-"`
	// Took is the time that the probe took.
	Took time.Duration `json:"took_ns"`
}

// Supports tells whether an engine works.
func (c Capabilities) Supports(e Engine) bool {
	for _, s := range c.Engines {
		if s.Engine == e {
			return s.OK
		}
	}
	return false
}

// RestoreWay returns the way to use when want was asked for. RestoreAuto, and
// an empty one, is RestorePlain. What does not work here is replaced by
// RestorePlain, which needs nothing, and why says so: a guest that is restored
// slowly is better than one that is not.
func (c Capabilities) RestoreWay(want RestoreWay) (way RestoreWay, why string) {
	if want == RestorePlain || want == RestoreAuto || want == "" {
		return RestorePlain, ""
	}
	for _, s := range c.RestoreWays {
		switch {
		case s.Way != want:
		case s.OK:
			return want, ""
		default:
			return RestorePlain, s.Why
		}
	}
	return RestorePlain, "the node's probe has not tried it"
}

// ProbeOptions tune Probe.
type ProbeOptions struct {
	// Binary is the QEMU program, DefaultBinary if empty.
	Binary string
	// Kernel is the guests' Linux kernel. With it KVM counts as
	// working when it boots this kernel to user space; without, when it runs
	// a few instructions, which proves less.
	Kernel string
	// Dir is where the probe makes its temporary directory; a short path.
	// The system's directory for temporary files if empty.
	Dir string
	// CacheFile keeps results; no cache if empty. Its directory must exist.
	CacheFile string
	// PayloadTimeout bounds the few instructions under KVM (2 s if 0),
	// KVMTimeout the boot of the kernel under KVM (3 s if 0).
	PayloadTimeout, KVMTimeout time.Duration
	// Log receives the probe's log; nil for none.
	Log *slog.Logger
}

func (o ProbeOptions) withDefaults() ProbeOptions {
	def := func(p *time.Duration, d time.Duration) {
		if *p == 0 {
			*p = d
		}
	}
	def(&o.PayloadTimeout, 2*time.Second)
	def(&o.KVMTimeout, 3*time.Second)
	if o.Binary == "" {
		o.Binary = DefaultBinary
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// kvmModels are the CPU models that are tried under KVM, the best first.
// Those of one maker do not run in full on the other's processors.
func kvmModels() []string {
	return []string{"Icelake-Server-v1", "Skylake-Server-v1", "EPYC-Rome-v1", "EPYC-v1", "Haswell-v1", "Nehalem-v1", "qemu64-v1"}
}

// prober is one run of Probe.
type prober struct {
	o      ProbeOptions
	binary string
	dir    string
	bios   string
	initrd string
}

// Probe finds out by booting throw-away guests which accelerator, which
// snapshot engines and which ways of restoring work for the calling user. It takes a few seconds; a cached
// result for the same QEMU, kernel, user and boot of the node takes none.
func Probe(ctx context.Context, opts ProbeOptions) (Capabilities, error) {
	opts = opts.withDefaults()
	begin := time.Now()
	binary, err := exec.LookPath(opts.Binary)
	if err != nil {
		return Capabilities{}, fmt.Errorf("find QEMU (on Debian: apt-get install qemu-system-x86): %w", err)
	}
	key, err := probeKey(binary, opts.Kernel)
	if err != nil {
		return Capabilities{}, err
	}
	if c, ok := loadProbe(opts.CacheFile, key); ok {
		c.Cached = true
		return c, nil
	}
	dir, err := os.MkdirTemp(opts.Dir, "vftp")
	if err != nil {
		return Capabilities{}, fmt.Errorf("probe: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	p := &prober{o: opts, binary: binary, dir: dir, bios: filepath.Join(dir, "bios"), initrd: filepath.Join(dir, "initrd")}
	if err := os.WriteFile(p.bios, biosPayload(), 0o600); err != nil {
		return Capabilities{}, fmt.Errorf("probe: %w", err)
	}
	if err := os.WriteFile(p.initrd, probeInitrd(), 0o600); err != nil {
		return Capabilities{}, fmt.Errorf("probe: %w", err)
	}
	c, err := p.run(ctx)
	if err != nil {
		return c, err
	}
	c.Took = time.Since(begin)
	if err := saveProbe(opts.CacheFile, key, c); err != nil {
		opts.Log.Warn("cannot keep the probe's result", "err", err)
	}
	return c, nil
}

// verdict is what one accelerator can do.
type verdict struct {
	err     error // why it does not work
	version string
	models  []string
	engines []EngineSupport
	ways    []RestoreSupport
}

// run tries both accelerators at the same time: TCG is what remains when KVM
// fails, which may take all of its time limit.
func (p *prober) run(ctx context.Context) (Capabilities, error) {
	var kvm, tcg verdict
	var wg sync.WaitGroup
	wg.Go(func() { kvm = p.kvm(ctx) })
	wg.Go(func() { tcg = p.tcg(ctx) })
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return Capabilities{}, fmt.Errorf("probe: %w", err)
	}
	if kvm.err == nil {
		return Capabilities{
			QEMUVersion: kvm.version, Accel: AccelKVM, AccelWhy: "a guest ran under KVM",
			CPUModel: kvm.models[0], CPUModels: kvm.models, Engines: kvm.engines, RestoreWays: kvm.ways,
		}, nil
	}
	if tcg.err != nil {
		return Capabilities{}, fmt.Errorf("no accelerator works: kvm: %w; tcg: %w", kvm.err, tcg.err)
	}
	return Capabilities{
		QEMUVersion: tcg.version, Accel: AccelTCG, AccelWhy: "KVM does not work: " + kvm.err.Error(),
		CPUModel: tcg.models[0], CPUModels: tcg.models, Engines: tcg.engines, RestoreWays: tcg.ways,
	}, nil
}

func (p *prober) kvm(ctx context.Context) verdict {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return verdict{err: err}
	}
	_ = f.Close()
	if err := p.payload(ctx); err != nil {
		return verdict{err: err}
	}
	v := p.guest(ctx, AccelKVM, nil)
	if v.err != nil || p.o.Kernel == "" {
		if v.err == nil {
			v = p.guest(ctx, AccelKVM, Engines())
		}
		return v
	}
	if err := p.kernel(ctx, AccelKVM, v.models[0], p.o.KVMTimeout); err != nil {
		return verdict{err: err}
	}
	return p.guest(ctx, AccelKVM, Engines())
}

// tcg does not boot the kernel: nothing is left to choose if that failed, and
// it takes seconds.
func (p *prober) tcg(ctx context.Context) verdict {
	return p.guest(ctx, AccelTCG, Engines())
}

// payload runs a few instructions under KVM.
func (p *prober) payload(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.o.PayloadTimeout)
	defer cancel()
	_, err := p.qemu(ctx, AccelKVM, DefaultKVMCPU, "-m", "16", "-bios", p.bios, "-device", "isa-debug-exit,iobase=0x501,iosize=2")
	var x *exec.ExitError
	if errors.As(err, &x) && x.ExitCode() == payloadExit {
		return nil
	}
	if err == nil {
		err = errors.New("qemu ended with status 0")
	}
	return fmt.Errorf("run a few instructions: %w", err)
}

// kernel boots the kernel to user space.
func (p *prober) kernel(ctx context.Context, accel Accel, cpu string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out, err := p.qemu(ctx, accel, cpu, "-m", "256", "-no-reboot", "-serial", "stdio",
		"-kernel", p.o.Kernel, "-initrd", p.initrd, "-append", kernelArgs(accel, "console=ttyS0 quiet panic=-1 reboot=t"))
	if bytes.Contains(out, []byte(kernelMarker)) {
		return nil
	}
	if err == nil {
		err = errors.New("the guest ended without reaching user space")
	}
	return fmt.Errorf("boot %s with CPU %s: %w", filepath.Base(p.o.Kernel), cpu, err)
}

// qemu runs a guest to its end. An error has the end of QEMU's messages.
func (p *prober) qemu(ctx context.Context, accel Accel, cpu string, args ...string) ([]byte, error) {
	argv := append([]string{
		"-nodefaults", "-no-user-config", "-display", "none",
		"-machine", DefaultMachine + machineOptions(DefaultMachine), "-accel", string(accel), "-cpu", cpu,
	}, args...)
	cmd := exec.CommandContext(ctx, p.binary, argv...) //nolint:gosec // running QEMU is what this package is for
	var stdout, stderr tailBuffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("no result within the time limit: %w", ctx.Err())
	}
	if msg := strings.TrimSpace(string(stderr.b)); err != nil && msg != "" {
		err = fmt.Errorf("%w: %s", err, strings.ReplaceAll(msg, "\n", " | "))
	}
	return stdout.b, err
}

// tailBuffer keeps the last bytes written to it.
type tailBuffer struct{ b []byte }

func (t *tailBuffer) Write(p []byte) (int, error) {
	const limit = 16 << 10
	t.b = append(t.b, p...)
	if len(t.b) > 2*limit {
		t.b = append([]byte(nil), t.b[len(t.b)-limit:]...)
	}
	return len(p), nil
}

// guest starts a machine that counts in memory, asks it for its CPU models,
// takes a snapshot with each of the engines, and restores one in every way.
func (p *prober) guest(ctx context.Context, accel Accel, engines []Engine) verdict {
	dir, err := os.MkdirTemp(p.dir, string(accel))
	if err != nil {
		return verdict{err: err}
	}
	spec := Spec{
		Name: "probe-" + string(accel), Dir: dir, MemoryMiB: 64, CPUs: 1, Accel: accel,
		KillWithParent: true, extra: []string{"-bios", p.bios},
	}
	ctx, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	m, err := Start(ctx, spec, Options{Binary: p.binary, Log: p.o.Log})
	if err != nil {
		return verdict{err: err}
	}
	defer func() { _ = m.Close() }()
	v := verdict{version: m.QEMUVersion(), models: []string{DefaultTCGCPU}}
	if accel == AccelKVM {
		if v.models, err = runnableModels(ctx, m); err != nil {
			return verdict{err: err}
		}
	}
	for _, e := range engines {
		s := EngineSupport{Engine: e, OK: true}
		if err := tryEngine(ctx, m, e); err != nil {
			s.OK, s.Why = false, err.Error()
		}
		v.engines = append(v.engines, s)
		if m.ExitError() != nil {
			break
		}
	}
	for _, e := range engines[len(v.engines):] {
		v.engines = append(v.engines, EngineSupport{Engine: e, Why: "the guest was lost while another engine was tried"})
	}
	if len(engines) > 0 {
		v.ways = p.restores(ctx, m, spec, v.engines)
	}
	return v
}

// restores takes a snapshot of m and tries every way of restoring it.
func (p *prober) restores(ctx context.Context, m *Machine, spec Spec, engines []EngineSupport) []RestoreSupport {
	saved := newSavedStream()
	ways := make([]RestoreSupport, len(RestoreWays()))
	err := snapshotInto(ctx, m, EngineStopCopy, saved)
	var wg sync.WaitGroup
	for i, way := range RestoreWays() {
		ways[i] = RestoreSupport{Way: way, OK: err == nil}
		if err != nil {
			ways[i].Why = fmt.Sprintf("no snapshot to restore from: %v", err)
			continue
		}
		wg.Go(func() {
			again := spec
			again.Name += "-" + string(way)
			again.Dir += string(way)[:1]
			if err := tryRestore(ctx, again, saved, way, engines, Options{Binary: p.binary, Log: p.o.Log}); err != nil {
				ways[i].OK, ways[i].Why = false, err.Error()
			}
		})
	}
	wg.Wait()
	return ways
}

// tryRestore restores a guest, which must go on, get all of its memory, and
// be fit for the first engine that works: what it was restored with must not
// stand in the way of its next checkpoint.
func tryRestore(ctx context.Context, spec Spec, saved Saved, way RestoreWay, engines []EngineSupport, opts Options) error {
	m, err := Restore(ctx, spec, saved, way, opts)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	if err := m.Cont(ctx); err != nil {
		return err
	}
	if err := counting(ctx, m); err != nil {
		return err
	}
	select {
	case <-m.Filled():
	case <-ctx.Done():
		return fmt.Errorf("the guest does not get all of its memory: %w", ctx.Err())
	}
	if err := m.FillError(); err != nil {
		return err
	}
	for _, e := range engines {
		if e.OK {
			return tryEngine(ctx, m, e.Engine)
		}
	}
	return nil
}

// runnableModels are the kvmModels that this host has all features of.
func runnableModels(ctx context.Context, m *Machine) ([]string, error) {
	var defs []struct {
		Name    string    `json:"name"`
		Missing *[]string `json:"unavailable-features"`
	}
	if err := m.execute(ctx, "query-cpu-definitions", nil, &defs); err != nil {
		return nil, err
	}
	full := map[string]bool{}
	for _, d := range defs {
		full[d.Name] = d.Missing != nil && len(*d.Missing) == 0
	}
	var models []string
	for _, name := range kvmModels() {
		if full[name] {
			models = append(models, name)
		}
	}
	if len(models) == 0 {
		// Not a reason to refuse: a nested KVM may lack a feature that no
		// kernel needs. Booting decides.
		models = []string{DefaultKVMCPU}
	}
	return models, nil
}

// discardSink is a Sink without a bottom.
type discardSink struct{ io.Writer }

// Close implements Sink.
func (discardSink) Close() error { return nil }

// tryEngine takes a snapshot and makes sure that the guest goes on.
func tryEngine(ctx context.Context, m *Machine, e Engine) error {
	if err := snapshotInto(ctx, m, e, discardSink{io.Discard}); err != nil {
		return err
	}
	return counting(ctx, m)
}

func snapshotInto(ctx context.Context, m *Machine, e Engine, sink Sink) error {
	s, err := m.Snapshot(ctx, e, sink, SnapshotOptions{})
	if err != nil {
		return err
	}
	if err := s.Prepare(ctx); err != nil {
		return err
	}
	if _, err := s.Cut(ctx, nil); err != nil {
		return err
	}
	_, err = s.Wait(ctx)
	return err
}

// counting tells whether the payload's counter moves.
func counting(ctx context.Context, m *Machine) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	first := ""
	for {
		var out string
		err := m.execute(ctx, "human-monitor-command",
			map[string]any{"command-line": fmt.Sprintf("xp /1hx %#x", payloadCounter)}, &out)
		switch {
		case ctx.Err() != nil:
			return errors.New("the guest hangs")
		case err != nil:
			return err
		case first == "":
			first = out
		case out != first:
			return nil
		}
	}
}
