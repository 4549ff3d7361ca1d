package launch

import (
	"slices"
	"strings"
	"testing"
)

func TestLaunch(t *testing.T) {
	one := []Host{{Name: "guest0", Slots: 2}}
	two := []Host{{Name: "guest0", Slots: 2}, {Name: "guest1", Slots: 1}}
	full := []Host{{Name: "guest0", Slots: 4, CPUs: 2}, {Name: "guest1", Slots: 4, CPUs: 4}}
	user := []string{"-np", "3", "./a.out", "-x"}
	tests := map[string]struct {
		build    func(hosts []Host, programEnv, userArgs []string) (argv, env []string)
		hosts    []Host
		argv     string
		has, not []string
	}{
		"openmpi alone": {
			OpenMPI, one, "/usr/bin/mpirun.openmpi --host guest0:2 -np 3 ./a.out -x",
			[]string{"OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"},
			[]string{"OMPI_MCA_oob_tcp_if_include=eth0", "OMPI_MCA_mpi_yield_when_idle=1"},
		},
		"openmpi across two": {
			OpenMPI, two, "/usr/bin/mpirun.openmpi --host guest0:2,guest1:1 -np 3 ./a.out -x",
			[]string{
				"OMPI_MCA_oob_tcp_if_include=eth0", "OMPI_MCA_btl_tcp_if_include=eth0",
				"OMPI_MCA_plm_rsh_agent=/usr/lib/vft/rsh",
			},
			[]string{"OMPI_MCA_mpi_yield_when_idle=1"},
		},
		"openmpi, more ranks than processors": {
			OpenMPI, full, "/usr/bin/mpirun.openmpi --host guest0:4,guest1:4 -np 3 ./a.out -x",
			[]string{"OMPI_MCA_mpi_yield_when_idle=1"},
			nil,
		},
		"mpich alone": {
			MPICH, one, "/usr/bin/mpirun.mpich -launcher ssh -launcher-exec /usr/lib/vft/rsh -hosts guest0:2 -genv LD_PRELOAD /usr/lib/vft/libvft-mpich.so -np 3 ./a.out -x",
			nil,
			[]string{"FI_TCP_IFACE=eth0"},
		},
		"mpich across two": {
			MPICH, two, "/usr/bin/mpirun.mpich -launcher ssh -launcher-exec /usr/lib/vft/rsh -hosts guest0:2,guest1:1 -iface eth0 -genv LD_PRELOAD /usr/lib/vft/libvft-mpich.so -np 3 ./a.out -x",
			[]string{"FI_TCP_IFACE=eth0"},
			nil,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			argv, env := tt.build(tt.hosts, nil, slices.Clone(user))
			if got := strings.Join(argv, " "); got != tt.argv {
				t.Errorf("argv\n got %s\nwant %s", got, tt.argv)
			}
			for _, e := range tt.has {
				if !slices.Contains(env, e) {
					t.Errorf("the environment lacks %s", e)
				}
			}
			for _, e := range tt.not {
				if slices.Contains(env, e) {
					t.Errorf("the environment has %s", e)
				}
			}
		})
	}
}

func TestProgramEnv(t *testing.T) {
	hosts := []Host{{Name: "guest0", Slots: 1}}
	for want, build := range map[string]func([]Host, []string, []string) ([]string, []string){
		"-x A=b=c -x D= ./a.out": OpenMPI,
		"-genv A b=c -genv D  -genv LD_PRELOAD /usr/lib/vft/libvft-mpich.so ./a.out": MPICH,
	} {
		argv, env := build(hosts, []string{"A=b=c", "D="}, []string{"./a.out"})
		if got := strings.Join(argv, " "); !strings.HasSuffix(got, want) {
			t.Errorf("got %s, want ... %s", got, want)
		}
		if slices.Contains(env, "A=b=c") {
			t.Error("the launcher gets the program's variable")
		}
	}
}

// TestPreload: what the user preloads into an MPICH program is loaded too.
func TestPreload(t *testing.T) {
	argv, _ := MPICH([]Host{{Name: "guest0", Slots: 1}}, []string{"LD_PRELOAD=/opt/a.so:/opt/b.so"}, []string{"./a.out"})
	want := "-genv LD_PRELOAD /usr/lib/vft/libvft-mpich.so:/opt/a.so:/opt/b.so ./a.out"
	if got := strings.Join(argv, " "); !strings.HasSuffix(got, want) || strings.Count(got, "LD_PRELOAD") != 1 {
		t.Errorf("got %s, want ... %s", got, want)
	}
}
