package wrapper

import (
	"math"
	"sort"
	"strconv"
	"strings"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/ckpt/level"
	"github.com/mpirun-vft/vft/internal/publish"
)

// Own holds mpirun-vft's own options, those that begin with --vft-.
type Own struct {
	Cluster     string                 // cluster file; empty: embedded
	Nodes       int                    // guests; 0: see [Command.Plan]
	MemoryMiB   uint32                 // per guest
	CPUs        int                    // per guest; 0: what a node has
	Interval    time.Duration          // between checkpoints; 0: only on request
	Auto        bool                   // the interval follows what is measured, and is Interval until then
	Engine      vftv1.Engine           // unspecified: the coordinator chooses
	Restore     vftv1.Restore          // unspecified: the node chooses
	Restarts    int32                  // restarts after failures; negative: no limit
	Stage       []string               // patterns of files to take along
	Levels      []level.Spec           // where checkpoints are kept, local first; nil: see [Command.Plan]
	Commit      *level.Spec            // at which of them one must be safe to count; nil: see [Command.Plan]
	Keep        uint32                 // newest checkpoints that are kept
	KeepHourly  uint32                 // hours of which the newest one is kept too
	Bandwidth   int64                  // bytes per second for levels after the commit; 0: no limit
	Publish     []*vftv1.PublishedPort // ports that lead to guests
	NetOut      bool                   // guests reach the world
	NetHost     bool                   // guests reach the loopback address of the gateway's node
	Quiet       bool                   // no lines of our own on stderr
	Events      string                 // where events go as JSON lines: a file, "-" or "fd:N"; empty: nowhere
	Image       string                 // guest image; empty: the wiring's choice
	Name        string                 // of the job; empty: the program's base name
	BootTimeout time.Duration          // per guest
	MPI         vftv1.Flavour          // unspecified: look at the program
	Help        bool
}

// Defaults of the options in [Own].
const (
	DefaultMemoryMiB   = 512
	DefaultInterval    = 30 * time.Second
	DefaultRestarts    = 10
	DefaultKeep        = 2
	DefaultBootTimeout = 2 * time.Minute
)

// ClusterVariable names the environment variable that stands for --vft-cluster.
const ClusterVariable = "VFT_CLUSTER"

func defaultOwn(env Environ) Own {
	cluster, _ := env.Lookup(ClusterVariable)
	return Own{
		Cluster: cluster, MemoryMiB: DefaultMemoryMiB, Interval: DefaultInterval, Restarts: DefaultRestarts,
		Keep: DefaultKeep, BootTimeout: DefaultBootTimeout,
	}
}

// ownOption is one of our options; one without argument has an empty hint.
type ownOption struct {
	hint string
	help string
	set  func(*Own, string) error
}

var engineNames = map[string]vftv1.Engine{
	"auto":       vftv1.Engine_ENGINE_UNSPECIFIED,
	"background": vftv1.Engine_ENGINE_BACKGROUND,
	"pre-copy":   vftv1.Engine_ENGINE_PRE_COPY,
	"stop-copy":  vftv1.Engine_ENGINE_STOP_COPY,
}

var restoreNames = map[string]vftv1.Restore{
	"auto":  vftv1.Restore_RESTORE_UNSPECIFIED,
	"lazy":  vftv1.Restore_RESTORE_LAZY,
	"file":  vftv1.Restore_RESTORE_FILE,
	"plain": vftv1.Restore_RESTORE_PLAIN,
}

// ownOptions lists our options by name without "--vft-".
func ownOptions() map[string]ownOption {
	return map[string]ownOption{
		"cluster": {"FILE", "use the cluster that FILE describes (or VFT_CLUSTER); without it everything runs on this machine", func(o *Own, v string) error {
			o.Cluster = v
			return nil
		}},
		"nodes": {"N", "number of guests (default: one per host named; else one per node of the cluster, at most one per rank; on this machine as few as hold the ranks, at most 2)", func(o *Own, v string) (err error) {
			o.Nodes, err = wholeNumber("nodes", v, 1, 4096)
			return err
		}},
		"memory": {"SIZE", "memory of each guest, such as 512M or 2G; a plain number is MiB (default 512M)", func(o *Own, v string) (err error) {
			o.MemoryMiB, err = memory(v)
			return err
		}},
		"cpus": {"N", "processors of each guest, which are its slots when no host list says otherwise (default: what the node has)", func(o *Own, v string) (err error) {
			o.CPUs, err = wholeNumber("cpus", v, 1, 1024)
			return err
		}},
		"interval": {"TIME", "time between checkpoints, such as 30s or 10m; auto: what checkpoints cost and nodes' failures make best; 0: none by itself (default 30s)", func(o *Own, v string) (err error) {
			if o.Auto = v == "auto"; o.Auto {
				o.Interval = DefaultInterval
				return nil
			}
			o.Interval, err = duration("interval", v)
			return err
		}},
		"engine": {"NAME", "how guests are copied: auto, background, pre-copy or stop-copy (default auto)", func(o *Own, v string) error {
			e, ok := engineNames[v]
			if !ok {
				return failf(ExitUsage, "--vft-engine %q: give auto, background, pre-copy or stop-copy", v)
			}
			o.Engine = e
			return nil
		}},
		"restore": {"NAME", "how guests get their memory back in a restart: lazy (they run at once and it follows), file, plain (all of it first), or auto, which is plain (default auto)", func(o *Own, v string) error {
			way, ok := restoreNames[v]
			if !ok {
				return failf(ExitUsage, "--vft-restore %q: give auto, lazy, file or plain", v)
			}
			o.Restore = way
			return nil
		}},
		"restarts": {"N", "restarts after failures before the job is given up; -1: no limit (default 10)", func(o *Own, v string) error {
			n, err := wholeNumber("restarts", v, -1, math.MaxInt32)
			o.Restarts = int32(n)
			return err
		}},
		"stage": {"PATTERN", "files of the working directory that the program needs in its guests; may be repeated", func(o *Own, v string) error {
			if v == "" {
				return failf(ExitUsage, "--vft-stage needs a file name or pattern")
			}
			o.Stage = append(o.Stage, v)
			return nil
		}},
		"levels": {"LEVEL,...", "where checkpoints are kept besides the guest's own node: partner (a copy on another node), rs:K+M (shards on K+M nodes), dir:/PATH (a directory that all nodes see), s3:BUCKET[/PREFIX] or s3:https://HOST/BUCKET[/PREFIX] (default partner, in a cluster with more than one node)", func(o *Own, v string) (err error) {
			o.Levels, err = readLevels(v)
			return err
		}},
		"commit": {"LEVEL", "the one of the levels at which a checkpoint must be safe before it counts; the others follow while the program goes on (default: the first of partner and rs among them, else local)", func(o *Own, v string) error {
			l, err := readLevel("commit", v)
			o.Commit = &l
			return err
		}},
		"keep": {"N", "newest checkpoints to keep (default 2)", func(o *Own, v string) error {
			n, err := wholeNumber("keep", v, 1, 1000)
			o.Keep = uint32(n)
			return err
		}},
		"keep-hourly": {"N", "keep the newest checkpoint of each of the last N hours too (default 0)", func(o *Own, v string) error {
			n, err := wholeNumber("keep-hourly", v, 0, 24*365)
			o.KeepHourly = uint32(n)
			return err
		}},
		"bandwidth": {"RATE", "bytes per second that each node may use for levels after the commit, such as 100M; 0: no limit (default 0)", func(o *Own, v string) (err error) {
			o.Bandwidth, err = bandwidth(v)
			return err
		}},
		"publish": {"[ADDRESS:]PORT:guestN:PORT", "lead a TCP port of the node that guest 0 runs on to a port of a guest; may be repeated", func(o *Own, v string) error {
			p, err := publish.Parse(v)
			if err != nil {
				return failf(ExitUsage, "--vft-publish %s", err)
			}
			o.Publish = append(o.Publish, p)
			return nil
		}},
		"net-out": {"", "let the guests reach the world, TCP and UDP, by way of the node that guest 0 runs on; without it they only reach each other", func(o *Own, _ string) error {
			o.NetOut = true
			return nil
		}},
		"net-host": {"", "let the guests reach TCP services at 127.0.0.1 of the node that guest 0 runs on, as host.vft", func(o *Own, _ string) error {
			o.NetHost = true
			return nil
		}},
		"quiet": {"", "no lines of vft on stderr", func(o *Own, _ string) error {
			o.Quiet = true
			return nil
		}},
		"events": {"WHERE", "write the job's events as JSON lines to a file, to - (stdout) or to fd:N", func(o *Own, v string) error {
			if fd, ok := strings.CutPrefix(v, "fd:"); ok {
				if _, err := wholeNumber("events fd:N", fd, 0, 1<<20); err != nil {
					return err
				}
			}
			if v == "" {
				return failf(ExitUsage, "--vft-events needs a file name, - or fd:N")
			}
			o.Events = v
			return nil
		}},
		"image": {"ID", "guest image to use (default: the newest that the nodes hold)", func(o *Own, v string) error {
			o.Image = v
			return nil
		}},
		"name": {"NAME", "name of the job (default: the program's)", func(o *Own, v string) error {
			o.Name = v
			return nil
		}},
		"boot-timeout": {"TIME", "how long a guest may take to boot (default 2m)", func(o *Own, v string) error {
			d, err := duration("boot-timeout", v)
			if err == nil && d == 0 {
				err = failf(ExitUsage, "--vft-boot-timeout 0: give the time a guest may take, such as 2m")
			}
			o.BootTimeout = d
			return err
		}},
		"mpi": {"NAME", "openmpi or mpich (default: what the program is linked with)", func(o *Own, v string) error {
			switch strings.ToLower(v) {
			case "openmpi", "ompi":
				o.MPI = vftv1.Flavour_FLAVOUR_OPENMPI
			case "mpich":
				o.MPI = vftv1.Flavour_FLAVOUR_MPICH
			default:
				return failf(ExitUsage, "--vft-mpi %q: give openmpi or mpich", v)
			}
			return nil
		}},
		"help": {"", "show these options", func(o *Own, _ string) error {
			o.Help = true
			return nil
		}},
	}
}

// ownPrefix begins each of our options.
const ownPrefix = "--vft-"

// take reads the own option at args[0] and returns how many words it used.
func (o *Own) take(args []string) (int, error) {
	name, value, inline := strings.Cut(strings.TrimPrefix(args[0], ownPrefix), "=")
	known := ownOptions()
	opt, ok := known[name]
	if !ok {
		names := make([]string, 0, len(known))
		for n := range known {
			names = append(names, n)
		}
		sort.Strings(names)
		if near := nearest(name, names); near != "" {
			return 0, failf(ExitUsage, "unknown option %s%s; did you mean %s%s? (--vft-help lists them)", ownPrefix, name, ownPrefix, near)
		}
		return 0, failf(ExitUsage, "unknown option %s%s; --vft-help lists those there are", ownPrefix, name)
	}
	used := 1
	switch {
	case opt.hint == "" && inline:
		return 0, failf(ExitUsage, "%s%s takes no value", ownPrefix, name)
	case opt.hint != "" && !inline:
		if len(args) < 2 {
			return 0, failf(ExitUsage, "%s%s needs a value: %s%s %s", ownPrefix, name, ownPrefix, name, opt.hint)
		}
		value, used = args[1], 2
	}
	return used, opt.set(o, value)
}

func wholeNumber(what, v string, low, high int) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		return 0, failf(ExitUsage, "--vft-%s %q: give a whole number from %d to %d", what, v, low, high)
	}
	return n, nil
}

func duration(what, v string) (time.Duration, error) {
	if v == "0" {
		return 0, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		if n, nerr := strconv.ParseUint(v, 10, 31); nerr == nil { // seconds, as in mpirun's --timeout
			return time.Duration(n) * time.Second, nil
		}
		return 0, failf(ExitUsage, "--vft-%s %q: give a time such as 30s, 10m or 1h", what, v)
	}
	if d < 0 {
		return 0, failf(ExitUsage, "--vft-%s %q: a time cannot be negative", what, v)
	}
	return d, nil
}

// memory reads a size as MiB.
func memory(v string) (uint32, error) {
	bad := func() (uint32, error) {
		return 0, failf(ExitUsage, "--vft-memory %q: give a size from 128M up, such as 512M or 2G", v)
	}
	digits := strings.TrimRight(v, "MmGgTtIiBb")
	unit := strings.ToLower(v[len(digits):])
	shift := 0
	switch unit {
	case "", "m", "mb", "mib":
	case "g", "gb", "gib":
		shift = 10
	case "t", "tb", "tib":
		shift = 20
	default:
		return bad()
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil || n > (1<<30)>>shift {
		return bad()
	}
	if n <<= shift; n < 128 {
		return bad()
	}
	return uint32(n), nil
}
