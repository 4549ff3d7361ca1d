package wrapper

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

const (
	ompi  = vftv1.Flavour_FLAVOUR_OPENMPI
	mpich = vftv1.Flavour_FLAVOUR_MPICH
)

// parserIn returns a parser for a directory with the programs ompi, mpich and
// script, and files to name.
func parserIn(t testing.TB) *Parser {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"ompi", "ompi2", "mpich", "script", "bin/tool", "sub/inner"} {
		write(name, "#!/bin/sh\n", 0o755)
	}
	write("plain", "text", 0o644)
	write("empty", "", 0o755)
	write("broken-elf", "\x7fELF\x02\x01\x01", 0o755)
	write("no-interpreter", "#!/does/not/exist\n", 0o755)
	write("arm", armELF(), 0o755)
	write("hosts.ompi", "# two\nnode1 slots=2\nnode2 slots=2 max-slots=4\n", 0o644)
	write("hosts.mpich", "node1:2\nnode2:2 # second\n", 0o644)
	write("hosts.empty", "# nobody\n", 0o644)
	write("app", "# two programs\n-np 1 ./ompi a 'b c'\n-np 2 ./ompi2\n", 0o644)
	write("tune.conf", "", 0o644)
	return &Parser{
		Dir: dir,
		Env: Environ{"PATH=" + filepath.Join(dir, "bin") + ":/bin", "HOME=/home/u", "FOO=1", "TMPDIR=/scratch", "SLURM_JOB_ID=7"},
		Flavour: func(path string) (vftv1.Flavour, error) {
			switch base := filepath.Base(path); {
			case strings.HasPrefix(base, "ompi"):
				return ompi, nil
			case base == "mpich":
				return mpich, nil
			case base == "unreadable":
				return 0, errors.New("permission denied")
			}
			return 0, nil
		},
	}
}

// armELF is the header of a 64-bit ARM executable.
func armELF() string {
	h := make([]byte, 64)
	copy(h, "\x7fELF\x02\x01\x01")
	h[16], h[18], h[20] = 2, 183, 1 // ET_EXEC, EM_AARCH64, EV_CURRENT
	h[52], h[54], h[58] = 64, 56, 64
	return string(h)
}

func TestParse(t *testing.T) {
	type want struct {
		flavour vftv1.Flavour
		ranks   int
		perNode int
		over    bool
		hosts   []Host
		options []string // of the first context
		program string
		args    []string
		more    func(*testing.T, *Command)
	}
	tests := []struct {
		line string
		want want
	}{
		{"-np 4 ./ompi a -b", want{flavour: ompi, ranks: 4, options: []string{"-np", "4"}, program: "./ompi", args: []string{"a", "-b"}}},
		{"-n 4 ./mpich", want{flavour: mpich, ranks: 4, over: true, options: []string{"-n", "4"}, program: "./mpich"}},
		{"-c 3 ./ompi", want{flavour: ompi, ranks: 3, options: []string{"-c", "3"}, program: "./ompi"}},
		{"--np 3 --n 4 ./ompi", want{flavour: ompi, ranks: 4, options: []string{"--np", "3", "--n", "4"}, program: "./ompi"}},
		{"./ompi -np 3", want{flavour: ompi, program: "./ompi", args: []string{"-np", "3"}}},
		{"./mpich", want{flavour: mpich, ranks: 1, over: true, program: "./mpich"}},
		{"-n=2 ./mpich", want{flavour: mpich, ranks: 2, over: true, options: []string{"-n=2"}, program: "./mpich"}},
		{"-NP 2 ./mpich", want{flavour: mpich, ranks: 2, over: true, options: []string{"-NP", "2"}, program: "./mpich"}},
		{"-np 2 -- ./ompi", want{flavour: ompi, ranks: 2, options: []string{"-np", "2", "--"}, program: "./ompi"}},
		{"-np 2 tool", want{flavour: ompi, ranks: 2, options: []string{"-np", "2"}, program: "tool"}},
		{"-np 2 ompi", want{flavour: ompi, ranks: 2, options: []string{"-np", "2"}, program: "ompi"}},
		{"-vq -np 2 ./ompi", want{flavour: ompi, ranks: 2, options: []string{"-vq", "-np", "2"}, program: "./ompi"}},
		{"-V -n 1 ./mpich", want{flavour: mpich, ranks: 1, over: true, options: []string{"-V", "-n", "1"}, program: "./mpich"}},
		{"-np 2 -wdir sub ./inner", want{flavour: ompi, ranks: 2, options: []string{"-np", "2", "-wdir", "sub"}, program: "./inner"}},
		{
			"-np 2 --host a:2,b --map-by node --bind-to core ./ompi",
			want{flavour: ompi, ranks: 2, hosts: []Host{{"a", 2, 0}, {"b", 1, 0}}, options: strings.Fields("-np 2 --map-by node --bind-to core"), program: "./ompi"},
		},
		{"-H a,a,b ./ompi", want{flavour: ompi, hosts: []Host{{"a", 2, 0}, {"b", 1, 0}}, program: "./ompi"}},
		{"--host a:* ./ompi", want{flavour: ompi, hosts: []Host{{"a", 0, 0}}, program: "./ompi"}},
		{"-hosts a:2,b:2 -n 3 ./mpich", want{flavour: mpich, ranks: 3, over: true, hosts: []Host{{"a", 2, 0}, {"b", 2, 0}}, options: []string{"-n", "3"}, program: "./mpich"}},
		{"--hostfile hosts.ompi ./ompi", want{flavour: ompi, hosts: []Host{{"node1", 2, 0}, {"node2", 2, 4}}, program: "./ompi"}},
		{"--hostfile hosts.ompi --host node2:1 ./ompi", want{flavour: ompi, hosts: []Host{{"node2", 1, 4}}, program: "./ompi"}},
		{"-f hosts.mpich -n 2 ./mpich", want{flavour: mpich, ranks: 2, over: true, hosts: []Host{{"node1", 2, 0}, {"node2", 2, 0}}, options: []string{"-n", "2"}, program: "./mpich"}},
		{"-npernode 2 ./ompi", want{flavour: ompi, perNode: 2, options: []string{"-npernode", "2"}, program: "./ompi"}},
		{"-N 2 -np 4 ./ompi", want{flavour: ompi, ranks: 4, perNode: 2, options: strings.Fields("-N 2 -np 4"), program: "./ompi"}},
		{"-pernode ./ompi", want{flavour: ompi, perNode: 1, options: []string{"-pernode"}, program: "./ompi"}},
		{"-np 4 --map-by ppr:2:node:oversubscribe ./ompi", want{flavour: ompi, ranks: 4, perNode: 2, over: true, options: strings.Fields("-np 4 --map-by ppr:2:node:oversubscribe"), program: "./ompi"}},
		{"-np 4 --map-by ppr:2:socket ./ompi", want{flavour: ompi, ranks: 4, options: strings.Fields("-np 4 --map-by ppr:2:socket"), program: "./ompi"}},
		{"-ppn 2 -n 4 ./mpich", want{flavour: mpich, ranks: 4, perNode: 2, over: true, options: strings.Fields("-ppn 2 -n 4"), program: "./mpich"}},
		{"--oversubscribe -np 9 ./ompi", want{flavour: ompi, ranks: 9, over: true, options: strings.Fields("--oversubscribe -np 9"), program: "./ompi"}},
		{"--mca rmaps_base_oversubscribe 1 -np 9 ./ompi", want{flavour: ompi, ranks: 9, over: true, options: strings.Fields("--mca rmaps_base_oversubscribe 1 -np 9"), program: "./ompi"}},
		{"-np 1 --mca btl self,tcp -x FOO -x BAR=2 ./ompi", want{flavour: ompi, ranks: 1, options: strings.Fields("-np 1 --mca btl self,tcp -x FOO -x BAR=2"), program: "./ompi"}},
		{"-genv A b -env C=d -n 1 ./mpich x", want{flavour: mpich, ranks: 1, over: true, options: strings.Fields("-genv A b -env C=d -n 1"), program: "./mpich", args: []string{"x"}}},
		{"-np 1 -x TMPDIR ./ompi", want{
			flavour: ompi, ranks: 1, options: strings.Fields("-np 1 -x TMPDIR"), program: "./ompi",
			more: func(t *testing.T, c *Command) {
				if v, ok := Environ(c.Env).Lookup("TMPDIR"); !ok || v != "/scratch" {
					t.Errorf("TMPDIR, named by -x, is not in the guest's environment: %q", c.Env)
				}
			},
		}},
		{"-n 1 ./mpich", want{
			flavour: mpich, ranks: 1, over: true, options: strings.Fields("-n 1"), program: "./mpich",
			more: func(t *testing.T, c *Command) {
				for _, k := range []string{"TMPDIR", "SLURM_JOB_ID"} {
					if _, ok := Environ(c.Env).Lookup(k); ok {
						t.Errorf("%s describes this machine and is passed on", k)
					}
				}
				if v, _ := Environ(c.Env).Lookup("FOO"); v != "1" {
					t.Errorf("FOO is not passed on: %q", c.Env)
				}
			},
		}},
		{"-np 1 ./ompi a : -np 2 ./ompi2 b", want{
			flavour: ompi, ranks: 3, options: []string{"-np", "1"}, program: "./ompi", args: []string{"a"},
			more: func(t *testing.T, c *Command) {
				if len(c.Contexts) != 2 || c.Contexts[1].Program != "./ompi2" || c.Contexts[1].Ranks != 2 {
					t.Errorf("second program: %+v", c.Contexts)
				}
			},
		}},
		{"-n 1 ./mpich : ./mpich", want{flavour: mpich, ranks: 2, over: true, options: []string{"-n", "1"}, program: "./mpich"}},
		{"--app app", want{
			flavour: ompi, ranks: 3, options: []string{"-np", "1"}, program: "./ompi", args: []string{"a", "b c"},
			more: func(t *testing.T, c *Command) {
				if len(c.Contexts) != 2 {
					t.Errorf("%d programs, want 2", len(c.Contexts))
				}
			},
		}},
		{"-tune ./tune.conf -np 1 ./ompi", want{
			flavour: ompi, ranks: 1, options: strings.Fields("-tune ./tune.conf -np 1"), program: "./ompi",
			more: func(t *testing.T, c *Command) {
				if len(c.Files) != 1 || filepath.Base(c.Files[0]) != "tune.conf" {
					t.Errorf("files mpirun reads: %q", c.Files)
				}
			},
		}},
		{"-np 2 ./script", want{flavour: ompi, ranks: 2, options: []string{"-np", "2"}, program: "./script"}},
		{"-genvall -n 2 ./script", want{flavour: mpich, ranks: 2, over: true, options: strings.Fields("-genvall -n 2"), program: "./script"}},
		{"--vft-mpi mpich -n 2 ./script", want{flavour: mpich, ranks: 2, over: true, options: []string{"-n", "2"}, program: "./script"}},
		{
			"--vft-nodes 3 -np 3 --vft-memory=2G --vft-interval 10 --vft-engine pre-copy --vft-restore plain --vft-restarts -1 --vft-stage *.dat --vft-stage in --vft-quiet ./ompi --vft-quiet",
			want{
				flavour: ompi, ranks: 3, options: []string{"-np", "3"}, program: "./ompi", args: []string{"--vft-quiet"},
				more: func(t *testing.T, c *Command) {
					o := Own{
						Nodes: 3, MemoryMiB: 2048, Interval: 10 * time.Second, Engine: vftv1.Engine_ENGINE_PRE_COPY, Restarts: -1,
						Restore: vftv1.Restore_RESTORE_PLAIN,
						Stage:   []string{"*.dat", "in"}, Quiet: true, Keep: DefaultKeep, BootTimeout: DefaultBootTimeout,
					}
					if !reflect.DeepEqual(c.Own, o) {
						t.Errorf("own options\n got %+v\nwant %+v", c.Own, o)
					}
				},
			},
		},
		{
			"--vft-levels local,partner,s3:bucket/runs,dir:/scratch/ckpt --vft-commit s3:bucket/runs --vft-keep 5 --vft-keep-hourly=12 --vft-bandwidth 100M --vft-publish 8080:guest0:80 --vft-publish=127.0.0.1:8081:guest1:81 --vft-net-out --vft-net-host -np 1 ./ompi",
			want{
				flavour: ompi, ranks: 1, options: []string{"-np", "1"}, program: "./ompi",
				more: func(t *testing.T, c *Command) {
					var levels []string
					for _, l := range c.Levels {
						levels = append(levels, l.String())
					}
					if !slices.Equal(levels, []string{"local", "partner", "s3:bucket/runs", "dir:/scratch/ckpt"}) || c.Commit.String() != "s3:bucket/runs" ||
						c.Keep != 5 || c.KeepHourly != 12 || c.Bandwidth != 100<<20 ||
						len(c.Publish) != 2 || c.Publish[1].GetAddress() != "127.0.0.1" || c.Publish[1].GetGuestPort() != 81 || !c.NetOut || !c.NetHost {
						t.Errorf("levels %q, %+v", levels, c.Own)
					}
				},
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			c, err := parserIn(t).Parse(strings.Fields(tt.line))
			if err != nil {
				t.Fatal(err)
			}
			first := c.Contexts[0]
			if c.Flavour != tt.want.flavour || c.Ranks != tt.want.ranks || c.RanksPerGuest != tt.want.perNode || c.Oversubscribe != tt.want.over {
				t.Errorf("flavour %v, ranks %d, per guest %d, oversubscribe %v; want %v, %d, %d, %v", c.Flavour, c.Ranks, c.RanksPerGuest, c.Oversubscribe,
					tt.want.flavour, tt.want.ranks, tt.want.perNode, tt.want.over)
			}
			if !slices.Equal(c.Hosts, tt.want.hosts) {
				t.Errorf("hosts %v, want %v", c.Hosts, tt.want.hosts)
			}
			if !slices.Equal(first.Options, tt.want.options) || first.Program != tt.want.program || !slices.Equal(first.Args, tt.want.args) {
				t.Errorf("options %q program %q args %q; want %q %q %q", first.Options, first.Program, first.Args, tt.want.options, tt.want.program, tt.want.args)
			}
			if tt.want.more != nil {
				tt.want.more(t, c)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	tests := []struct {
		line string
		code int
		says string
	}{
		{"", ExitUsage, "no program"},
		{"-np 2", ExitUsage, "no program"},
		{"-np", ExitUsage, "needs 1 argument"},
		{"-np 0 ./ompi", ExitUsage, "-np 0 starts nothing; give 1 or more"},
		{"-n 0 ./mpich", ExitUsage, "starts nothing"},
		{"-np -1 ./ompi", ExitUsage, "negative"},
		{"-np four ./ompi", ExitUsage, "number of ranks"},
		{"-np 99999999999999999999 ./ompi", ExitUsage, "number of ranks"},
		{"--np=4 ./ompi", ExitUsage, "unknown option --np=4 of Open MPI"},
		{"--bogus ./ompi", ExitUsage, "unknown option --bogus"},
		{"--oversubscrib -np 1 ./ompi", ExitUsage, "did you mean --oversubscribe?"},
		{"-genvall -np 1 ./ompi", ExitUsage, "unknown option -genvall of Open MPI"},
		{"-x A=1 -n 1 ./mpich", ExitUsage, "unknown option -x of MPICH"},
		{"--vft-intervall 3 ./ompi", ExitUsage, "did you mean --vft-interval?"},
		{"--vft-zzz 3 ./ompi", ExitUsage, "--vft-help lists"},
		{"--vft-nodes", ExitUsage, "needs a value"},
		{"--vft-nodes 0 ./ompi", ExitUsage, "whole number from 1"},
		{"--vft-quiet=yes ./ompi", ExitUsage, "takes no value"},
		{"--vft-memory 12X ./ompi", ExitUsage, "such as 512M"},
		{"--vft-memory 1M ./ompi", ExitUsage, "from 128M up"},
		{"--vft-interval soon ./ompi", ExitUsage, "30s"},
		{"--vft-engine warp ./ompi", ExitUsage, "background"},
		{"--vft-restore warp ./ompi", ExitUsage, "lazy"},
		{"--vft-levels tape ./ompi", ExitUsage, "rs:K+M"},
		{"--vft-levels partner,partner ./ompi", ExitUsage, "twice"},
		{"--vft-levels rs:4 ./ompi", ExitUsage, "rs:4+2"},
		{"--vft-commit dir:here ./ompi", ExitUsage, "absolute"},
		{"--vft-keep 0 ./ompi", ExitUsage, "from 1"},
		{"--vft-keep-hourly -1 ./ompi", ExitUsage, "from 0"},
		{"--vft-bandwidth fast ./ompi", ExitUsage, "100M"},
		{"--vft-bandwidth 1X ./ompi", ExitUsage, "100M"},
		{"--vft-publish 8080:80 ./ompi", ExitUsage, "8080:guest0:80"},
		{"--vft-net-out=yes ./ompi", ExitUsage, "no value"},
		{"--vft-bandwidth 99999999G ./ompi", ExitUsage, "100M"},
		{"--vft-events fd:x ./ompi", ExitUsage, "whole number"},
		{"--vft-mpi lam ./ompi", ExitUsage, "openmpi or mpich"},
		{"-np 1 ./missing", ExitNotFound, "does not exist"},
		{"-np 1 missing", ExitNotFound, "not on PATH"},
		{"-n 1 --vft-mpi mpich ompi", ExitNotFound, "did you mean ./ompi?"},
		{"-np 1 ./plain", ExitNotExec, "not executable; chmod +x"},
		{"-np 1 ./sub", ExitNotExec, "is a directory"},
		{"-np 1 ./empty", ExitNotExec, "empty"},
		{"-np 1 ./broken-elf", ExitNotExec, "damaged"},
		{"-np 1 ./no-interpreter", ExitNotFound, "/does/not/exist"},
		{"-np 1 ./arm", ExitNotExec, "built for AARCH64"},
		{"-np 1 ./ompi : ./ompi2", ExitUsage, "needs its number of ranks"},
		{"-np 1 ./ompi :", ExitUsage, "no program in part 2"},
		{"-np 1 ./ompi : -np 1 ./mpich", ExitUsage, "different MPI"},
		{"--hostfile nowhere ./ompi", ExitData, "reading the host file"},
		{"--hostfile hosts.empty ./ompi", ExitData, "names no host"},
		{"-f hosts.ompi ./mpich", ExitData, "line 2: slots=2 is not for MPICH"},
		{"--host , ./ompi", ExitUsage, "empty"},
		{"--host a:0 ./ompi", ExitUsage, "not a number of slots"},
		{"--host +n1 ./ompi", ExitUsage, "not supported"},
		{"--hostfile hosts.ompi --host other ./ompi", ExitHost, "not in the host file"},
		{"-hosts a -f hosts.mpich ./mpich", ExitUsage, "second host list"},
		{"--app nowhere", ExitData, "reading the command lines"},
		{"--npernode x ./ompi", ExitUsage, "per node"},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			_, err := parserIn(t).Parse(strings.Fields(tt.line))
			if err == nil {
				t.Fatal("no error")
			}
			if ExitCode(err) != tt.code || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("exit code %d, %q; want %d and one line with %q", ExitCode(err), err, tt.code, tt.says)
			}
		})
	}
}

func TestParseShow(t *testing.T) {
	for line, want := range map[string]Show{
		"--help": ShowHelp, "-h": ShowHelp, "--help mapping": ShowHelp, "--version": ShowVersion, "-V": ShowVersion,
		"-np 2 --version ./ompi": ShowVersion, "--vft-help": ShowOwn, "-np 2 --help ./ompi": ShowHelp, "-info": ShowVersion,
	} {
		c, err := parserIn(t).Parse(strings.Fields(line))
		if err != nil || c.Show != want {
			t.Errorf("%s: show %q, %v; want %q", line, c.Show, err, want)
		}
	}
}

func TestProgramOfTheImage(t *testing.T) {
	p := parserIn(t)
	p.InImage = func(name string) (string, bool) {
		return "/usr/bin/osu", name == "osu" || name == "/usr/bin/osu"
	}
	for _, name := range []string{"osu", "/usr/bin/osu"} {
		c, err := p.Parse([]string{"-np", "2", name})
		if err != nil || c.Contexts[0].Path != "/usr/bin/osu" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := p.Parse([]string{"-np", "2", "/usr/bin/nothing"}); ExitCode(err) != ExitNotFound {
		t.Errorf("a program that is nowhere: %v", err)
	}
}

// Whatever options stand before the program, the program is found, and its
// arguments and all options but host lists go to mpirun as they were.
func TestParseKeepsEverythingElse(t *testing.T) {
	p := parserIn(t)
	for flavour, program := range map[vftv1.Flavour]string{ompi: "./ompi", mpich: "./mpich"} {
		table := tableOf(flavour)
		var names []string
		for n, o := range table.byName {
			switch o.means {
			case meaningPass, meaningMCA, meaningExport, meaningSetEnv, meaningEnvList, meaningEnvAll, meaningEnvNone, meaningRanks, meaningHosts, meaningOversubscribe:
				names = append(names, n)
			}
		}
		slices.Sort(names)
		t.Run(flavour.String(), rapid.MakeCheck(func(t *rapid.T) {
			value := rapid.StringMatching(`[a-z][a-z0-9_.,]{0,8}`)
			var line, kept []string
			hosts := false
			for range rapid.IntRange(0, 6).Draw(t, "options") {
				name := rapid.SampledFrom(names).Draw(t, "name")
				o := table.byName[name]
				word := rapid.SampledFrom([]string{"-", "--"}).Draw(t, "dashes") + name
				words := []string{word}
				switch {
				case o.means == meaningRanks:
					words = append(words, "3")
				case o.means == meaningHosts:
					if hosts {
						continue
					}
					hosts = true
					words = append(words, "a:2,b")
				case o.arity == arityAssign && rapid.Bool().Draw(t, "joined"):
					words = append(words, value.Draw(t, "key")+"="+value.Draw(t, "value"))
				default:
					n := int(o.arity)
					if o.arity == arityAssign {
						n = 2
					}
					for range n {
						words = append(words, value.Draw(t, "value"))
					}
				}
				line = append(line, words...)
				if o.means != meaningHosts {
					kept = append(kept, words...)
				}
				if rapid.IntRange(0, 4).Draw(t, "own") == 0 {
					line = append(line, "--vft-nodes", "2")
				}
			}
			args := rapid.SliceOfN(rapid.StringMatching(`[-a-z=]{1,6}`), 0, 4).Draw(t, "args")
			line = append(append(line, program), args...)
			c, err := p.Parse(line)
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			got := c.Arguments(&Plan{}, nil)
			if want := append(append(slices.Clone(kept), program), args...); !slices.Equal(got, want) {
				t.Fatalf("%q\n got %q\nwant %q", line, got, want)
			}
			again, err := p.Parse(got)
			if err != nil || !slices.Equal(again.Arguments(&Plan{}, nil), got) || again.Ranks != c.Ranks && c.Hosts == nil {
				t.Fatalf("%q is not read as it was written: %v", got, err)
			}
		}))
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"-np\x004\x00./ompi", "-n=2\x00./mpich\x00:\x00-env\x00A=b\x00./mpich", "--host\x00a:2,[::1]:3\x00./ompi",
		"--vft-memory\x002G\x00./script", "-x\x00", "--map-by\x00ppr:2:node\x00./ompi", "-vq\x00--\x00./ompi",
	} {
		f.Add(seed)
	}
	p := parserIn(f)
	f.Fuzz(func(t *testing.T, joined string) {
		c, err := p.Parse(strings.Split(joined, "\x00"))
		if err != nil {
			var known *Error
			if !errors.As(err, &known) || known.Code == 0 {
				t.Fatalf("an error without exit code: %v", err)
			}
			return
		}
		if c.Show != ShowNothing {
			return
		}
		plan, err := c.Plan(Resources{Embedded: true, Hostname: "here", Nodes: []Node{{Name: "here", CPUs: 2}}})
		if err != nil {
			return
		}
		if len(plan.Guests) == 0 || plan.Ranks < 1 {
			t.Fatalf("a plan for nothing: %+v", plan)
		}
		for _, g := range plan.Guests {
			if g.Slots < 1 {
				t.Fatalf("a guest without slots: %+v", plan)
			}
		}
	})
}
