package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mpirun-vft/vft/bench/campaign"
	"github.com/mpirun-vft/vft/guest"
)

// Overlay measures the guests' switch, without guests: two network namespaces
// are joined by taps, each of which a small process carries to the switch as
// QEMU would. VDE2 (vde_switch with vde_plug2tap) and a kernel veth pair do the
// same by turns. It needs root.
type Overlay struct {
	Self   string        // this program, which is started again as switch and as plugs
	Dir    string        // working directory, short, made and removed by the caller
	Time   time.Duration // of one measurement of throughput
	Rounds int           // measurements of each case, by turns; medians are reported
	Emit   func(Result)  // gets the figures
}

// mtus of a case: what vft's guests have, and Ethernet's.
const (
	guestMTU    = 65520
	ethernetMTU = 1500
)

// path is one way from a namespace to the other.
type path struct {
	name string
	mtu  int
	// lay makes the path, with a device eth0 in both namespaces.
	lay func(b *wires, ctx context.Context) error

	throughput, latency []float64 // Gbit/s, µs
}

// Run measures everything and emits it at the end.
func (o Overlay) Run(ctx context.Context) error {
	if err := o.ready(); err != nil {
		return err
	}
	veth := &path{name: "veth", mtu: guestMTU, lay: (*wires).layVeth}
	vde := &path{name: "VDE2", mtu: ethernetMTU, lay: (*wires).layVDE}
	oneNode := func(mtu int) *path {
		return &path{name: fmt.Sprintf("one node, MTU %d", mtu), mtu: mtu, lay: func(b *wires, ctx context.Context) error { return b.laySwitches(ctx, 1) }}
	}
	twoNodes := func(mtu int) *path {
		return &path{name: fmt.Sprintf("two nodes, encrypted link, MTU %d", mtu), mtu: mtu, lay: func(b *wires, ctx context.Context) error { return b.laySwitches(ctx, 2) }}
	}
	ours := []*path{oneNode(guestMTU), oneNode(ethernetMTU), twoNodes(guestMTU), twoNodes(ethernetMTU)}
	var crowd crowd
	for round := range o.Rounds {
		for _, p := range append([]*path{veth, vde}, ours...) {
			if err := o.measure(ctx, p); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
		for _, deaf := range []bool{round%2 == 0, round%2 != 0} {
			if err := o.crowd(ctx, &crowd, deaf); err != nil {
				return fmt.Errorf("%d ports: %w", crowdPorts, err)
			}
		}
	}
	for _, base := range []*path{vde, veth} {
		for _, p := range ours {
			r := Result{Bench: "overlay", Case: p.name + ", against " + base.name}
			r.Metric, r.Value, r.Unit = "TCP throughput", campaign.Quantile(p.throughput, 0.5), "Gbit/s"
			o.Emit(r.against(campaign.Quantile(base.throughput, 0.5)))
			r.Metric, r.Value, r.Unit = "NetPIPE latency, 1 byte", campaign.Quantile(p.latency, 0.5), "µs"
			o.Emit(r.against(campaign.Quantile(base.latency, 0.5)))
		}
	}
	o.Emit(Result{
		Bench: "overlay", Case: fmt.Sprintf("%d ports, one does not read", crowdPorts), Metric: "throughput of the others",
		Value: campaign.Quantile(crowd.deaf, 0.5), Unit: "Gbit/s",
	}.against(campaign.Quantile(crowd.open, 0.5)))
	return nil
}

// ready says what is missing.
func (o Overlay) ready() error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces and taps need root: run `vft-bench overlay` as root")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("taps: %w: load the kernel's tun module", err)
	}
	var missing []string
	for tool, pkg := range map[string]string{"ip": "iproute2", "vde_switch": "vde2", "vde_plug2tap": "vde2", "NPtcp": "netpipe-tcp", "iperf3": "iperf3"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, tool+" ("+pkg+")")
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("missing: %s; install them with `apt-get install iproute2 vde2 netpipe-tcp iperf3`", strings.Join(missing, ", "))
	}
	return nil
}

// wires is two namespaces and what joins them.
type wires struct {
	Overlay
	mtu   int
	space [2]string
	procs []*exec.Cmd
}

// measure lays the path, measures it once, and takes everything away again.
func (o Overlay) measure(ctx context.Context, p *path) (err error) {
	b := &wires{Overlay: o, mtu: p.mtu}
	defer func() { err = errors.Join(err, b.clear(ctx)) }()
	for i := range b.space {
		name := fmt.Sprintf("vftbench%d-%d", os.Getpid(), i)
		if err := ip(ctx, "netns", "add", name); err != nil {
			return err
		}
		b.space[i] = name
	}
	if err := p.lay(b, ctx); err != nil {
		return err
	}
	for i, space := range b.space {
		for _, args := range [][]string{
			{"link", "set", "eth0", "address", guest.MAC(i).String(), "mtu", strconv.Itoa(p.mtu)},
			{"addr", "add", address(i) + "/24", "dev", "eth0"},
			{"link", "set", "eth0", "up"},
			{"link", "set", "lo", "up"},
		} {
			if err := ip(ctx, append([]string{"-n", space}, args...)...); err != nil {
				return err
			}
		}
	}
	latency, err := b.netpipe(ctx)
	if err != nil {
		return err
	}
	throughput, err := b.iperf(ctx)
	if err != nil {
		return err
	}
	p.latency, p.throughput = append(p.latency, latency), append(p.throughput, throughput)
	return nil
}

func address(i int) string { return fmt.Sprintf("10.201.77.%d", i+1) }

func ip(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// clear ends the processes, last one first, and removes the namespaces.
func (b *wires) clear(ctx context.Context) error {
	for i := len(b.procs) - 1; i >= 0; i-- {
		stopProcess(b.procs[i])
	}
	var errs []error
	for _, space := range b.space {
		if space != "" {
			errs = append(errs, ip(context.WithoutCancel(ctx), "netns", "del", space))
		}
	}
	return errors.Join(errs...)
}

func stopProcess(cmd *exec.Cmd) {
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Wait() // CommandContext kills it in the end
}

// spawn starts a program, in a namespace unless that is -1.
func (b *wires) spawn(ctx context.Context, space int, stdin []byte, args ...string) error {
	if space >= 0 {
		args = append([]string{"ip", "netns", "exec", b.space[space]}, args...)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.WaitDelay = 5 * time.Second
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	} else if _, err := cmd.StdinPipe(); err != nil { // stays open: vde_switch ends with its console
		return fmt.Errorf("start %s: %w", args[0], err)
	}
	log, err := os.OpenFile(filepath.Join(b.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("log of the processes: %w", err)
	}
	defer log.Close() //nolint:errcheck // the child has its own
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", args[0], err)
	}
	b.procs = append(b.procs, cmd)
	return nil
}

func (b *wires) layVeth(ctx context.Context) error {
	return ip(ctx, "link", "add", "eth0", "netns", b.space[0], "type", "veth", "peer", "name", "eth0", "netns", b.space[1])
}

func (b *wires) layVDE(ctx context.Context) error {
	socket := filepath.Join(b.Dir, "vde")
	_ = os.RemoveAll(socket) // of the round before
	if err := b.spawn(ctx, -1, nil, "vde_switch", "-s", socket); err != nil {
		return err
	}
	if err := waitFor(ctx, "vde_switch", func() bool { return exists(filepath.Join(socket, "ctl")) }); err != nil {
		return err
	}
	for i := range b.space {
		if err := b.spawn(ctx, i, nil, "vde_plug2tap", "-s", socket, "eth0"); err != nil {
			return err
		}
	}
	return b.awaitTaps(ctx)
}

// laySwitches makes one switch, or two with a link between them.
func (b *wires) laySwitches(ctx context.Context, nodes int) error {
	var sockets []string
	for i := range b.space {
		sockets = append(sockets, filepath.Join(b.Dir, fmt.Sprint("q", i)))
		_ = os.Remove(sockets[i])
		if err := b.spawn(ctx, i, nil, b.Self, "overlay-plug", "eth0", sockets[i]); err != nil {
			return err
		}
	}
	if err := b.awaitTaps(ctx); err != nil {
		return err
	}
	return b.startSwitches(ctx, nodes, sockets)
}

// startSwitches starts the processes of the switches, for guests behind the
// sockets, the first half of which are on the first node.
func (b *wires) startSwitches(ctx context.Context, nodes int, sockets []string) error {
	cfg := SwitchConfig{Ready: filepath.Join(b.Dir, "ready")}
	var err error
	if cfg.Certificate, cfg.Key, err = selfSigned(); err != nil {
		return err
	}
	listeners, err := freePorts(ctx, nodes)
	if err != nil {
		return err
	}
	for i, socket := range sockets {
		node := i * nodes / len(sockets)
		cfg.Guests = append(cfg.Guests, SwitchGuest{Node: fmt.Sprint("n", node), Address: listeners[node], Socket: socket})
	}
	for i := range nodes {
		cfg.Node, cfg.Listen = fmt.Sprint("n", i), listeners[i]
		_ = os.Remove(cfg.Ready + cfg.Node)
		text, err := json.Marshal(cfg)
		if err != nil {
			return fmt.Errorf("configuration of a switch: %w", err)
		}
		if err := b.spawn(ctx, -1, text, b.Self, "overlay-switch"); err != nil {
			return err
		}
	}
	for i := range nodes {
		if err := waitFor(ctx, "switch of node "+fmt.Sprint(i), func() bool { return exists(cfg.Ready + fmt.Sprint("n", i)) }); err != nil {
			log, _ := os.ReadFile(filepath.Join(b.Dir, "log"))
			return fmt.Errorf("%w\n%s", err, tail(string(log), 1000))
		}
	}
	return nil
}

// freePorts returns addresses on the loopback that were free a moment ago.
func freePorts(ctx context.Context, n int) ([]string, error) {
	var all []string
	for range n {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer l.Close() //nolint:errcheck // never used
		all = append(all, l.Addr().String())
	}
	return all, nil
}

func (b *wires) awaitTaps(ctx context.Context) error {
	for _, space := range b.space {
		if err := waitFor(ctx, "tap in "+space, func() bool { return ip(ctx, "-n", space, "link", "show", "eth0") == nil }); err != nil {
			return err
		}
	}
	return nil
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// waitFor waits for something that other programs do without telling.
func waitFor(ctx context.Context, what string, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for !done() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// serve starts a server in the second namespace, runs a client in the first
// until the server takes it, and returns the figure that the client printed.
func (b *wires) serve(ctx context.Context, server, client []string, read func(out []byte) (float64, error)) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second+2*b.Time)
	defer cancel()
	if err := b.spawn(ctx, 1, nil, server...); err != nil {
		return 0, err
	}
	last := len(b.procs) - 1
	defer func() {
		stopProcess(b.procs[last])
		b.procs = b.procs[:last]
	}()
	for {
		cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", b.space[0]}, client...)...)
		cmd.Dir = b.Dir // NPtcp leaves a file
		out, err := cmd.CombinedOutput()
		if err == nil {
			var figure float64
			if figure, err = read(out); err == nil {
				return figure, nil
			}
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%s: %w: %s", client[0], err, tail(string(out), 500))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// iperf returns the throughput of one TCP connection in Gbit/s.
func (b *wires) iperf(ctx context.Context) (float64, error) {
	client := []string{"iperf3", "-c", address(1), "-t", fmt.Sprint(b.Time.Seconds()), "-J"}
	return b.serve(ctx, []string{"iperf3", "-s", "-1"}, client, func(out []byte) (float64, error) {
		var report struct {
			Error string
			End   struct {
				Received struct {
					Bits float64 `json:"bits_per_second"`
				} `json:"sum_received"`
			}
		}
		if err := json.Unmarshal(out, &report); err != nil {
			return 0, fmt.Errorf("iperf3's report: %w", err)
		}
		if report.Error != "" { // its exit code says nothing of it
			return 0, errors.New(report.Error)
		}
		return report.End.Received.Bits / 1e9, nil
	})
}

var netpipeOneByte = regexp.MustCompile(`1 bytes .* in +([0-9.]+) usec`)

// netpipe returns NetPIPE's latency of one byte, half a round trip, in µs.
func (b *wires) netpipe(ctx context.Context) (float64, error) {
	client := []string{"NPtcp", "-h", address(1), "-l", "1", "-u", "1", "-n", "5000"}
	return b.serve(ctx, []string{"NPtcp"}, client, func(out []byte) (float64, error) {
		m := netpipeOneByte.FindSubmatch(out)
		if m == nil {
			return 0, errors.New("NetPIPE has printed no time")
		}
		return strconv.ParseFloat(string(m[1]), 64)
	})
}
