// Package launch builds the command lines that start an MPI job across guests
// from inside one of them. Its functions are pure: equal arguments give equal
// results.
//
// What the job needs is passed through environment variables of the launcher
// wherever they exist, so that anything the user puts on the command line wins.
package launch

import (
	"strconv"
	"strings"

	"github.com/mpirun-vft/vft/guest"
)

// Paths of the launchers in the guest.
const (
	OpenMPIPath = "/usr/bin/mpirun.openmpi"
	MPICHPath   = "/usr/bin/mpirun.mpich"
)

// nic is the guests' network device.
const nic = "eth0"

// Host is one guest that takes part.
type Host struct {
	// Name as in the guests' /etc/hosts.
	Name string
	// Slots is the number of ranks the guest takes.
	Slots int
	// CPUs is the number of virtual processors; 0 means as many as Slots.
	CPUs int
}

func (h Host) oversubscribed() bool { return h.CPUs > 0 && h.Slots > h.CPUs }

// hostList renders "name:slots,...".
func hostList(hosts []Host) string {
	list := make([]string, len(hosts))
	for i, h := range hosts {
		list[i] = h.Name + ":" + strconv.Itoa(h.Slots)
	}
	return strings.Join(list, ",")
}

func anyOversubscribed(hosts []Host) bool {
	for _, h := range hosts {
		if h.oversubscribed() {
			return true
		}
	}
	return false
}

// OpenMPI returns the command line that runs Open MPI's mpirun with userArgs on
// hosts, and the variables to add to its environment:
//
//   - root may start ranks: it is root of a guest that exists for this job only;
//   - remote daemons are started by the guests' own start service;
//   - ranks talk over shared memory and TCP on the guests' network. Other
//     transports find no device, and loading them costs seconds under emulation;
//   - ranks are not bound to processors: the processors are virtual, and the
//     host's scheduler places them;
//   - where ranks outnumber processors, waiting ranks yield.
//
// The "NAME=value" pairs of programEnv reach the ranks and not the launcher.
func OpenMPI(hosts []Host, programEnv, userArgs []string) (argv, env []string) {
	env = []string{
		"OMPI_ALLOW_RUN_AS_ROOT=1",
		"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
		"OMPI_MCA_plm_rsh_agent=" + guest.RshPath,
		"OMPI_MCA_pml=ob1",
		"OMPI_MCA_btl=self,vader,tcp",
		"OMPI_MCA_osc=^ucx",
		"OMPI_MCA_coll=^hcoll",
		"OMPI_MCA_hwloc_base_binding_policy=none",
	}
	if len(hosts) > 1 {
		env = append(env, "OMPI_MCA_btl_tcp_if_include="+nic, "OMPI_MCA_oob_tcp_if_include="+nic)
	}
	if anyOversubscribed(hosts) {
		env = append(env, "OMPI_MCA_mpi_yield_when_idle=1")
	}
	argv = []string{OpenMPIPath, "--host", hostList(hosts)}
	for _, e := range programEnv {
		argv = append(argv, "-x", e)
	}
	return append(argv, userArgs...), env
}

// MPICH returns the command line that runs MPICH's mpirun with userArgs on
// hosts, and the variables to add to its environment. The choices are those of
// [OpenMPI]; besides, ranks get the library that keeps them from hanging at
// their end. A library that the user preloads comes after it.
func MPICH(hosts []Host, programEnv, userArgs []string) (argv, env []string) {
	argv = []string{MPICHPath, "-launcher", "ssh", "-launcher-exec", guest.RshPath, "-hosts", hostList(hosts)}
	env = []string{"UCX_WARN_UNUSED_ENV_VARS=n"}
	if len(hosts) > 1 {
		argv = append(argv, "-iface", nic)
		env = append(env,
			"FI_TCP_IFACE="+nic, "FI_SOCKETS_IFACE="+nic,
			"MPIR_CVAR_CH3_NETWORK_IFACE="+nic,
			"UCX_NET_DEVICES="+nic, "UCX_TLS=self,sm,tcp")
	}
	preload := guest.MPICHPreloadPath
	for _, e := range programEnv {
		name, value, _ := strings.Cut(e, "=")
		if name == "LD_PRELOAD" {
			preload += ":" + value
			continue
		}
		argv = append(argv, "-genv", name, value)
	}
	argv = append(argv, "-genv", "LD_PRELOAD", preload)
	return append(argv, userArgs...), env
}
