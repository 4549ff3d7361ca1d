package wrapper

import (
	"slices"
	"strings"
)

// Environ is a list of KEY=VALUE.
type Environ []string

// Lookup returns the value of key; of several the last counts.
func (e Environ) Lookup(key string) (string, bool) {
	for _, kv := range slices.Backward(e) {
		if k, v, ok := strings.Cut(kv, "="); ok && k == key {
			return v, true
		}
	}
	return "", false
}

// foreign are variables that describe this machine, this login or a launcher
// around us, and would mislead an mpirun that runs elsewhere. They are passed
// only when an option names them.
var foreign = []string{
	"TMPDIR", "TMP", "TEMP", "PWD", "OLDPWD", "SHLVL", "_", "LD_PRELOAD", "LS_COLORS", "XAUTHORITY",
	"MAIL", "SSH_AUTH_SOCK", "SSH_CLIENT", "SSH_CONNECTION", "SSH_TTY", "DBUS_SESSION_BUS_ADDRESS",
	"HYDRA_HOST_FILE", "PE_HOSTFILE", "JOB_ID", "PBS_NODEFILE", "MPIEXEC_HOSTS",
}

// foreignPrefixes begin further such variables.
var foreignPrefixes = []string{
	"OMPI_COMM_WORLD_", "OMPI_UNIVERSE_", "OMPI_FILE_LOCATION", "OMPI_APP_", "OMPI_MCA_ess_", "OMPI_MCA_orte_",
	"PMIX_", "PMI_", "HYDI_", "MPI_LOCAL", "SLURM_", "PBS_", "LSB_", "LS_JOB", "COBALT_", "LOADL_", "FLUX_",
	"XDG_", "VFT_", "GIO_", "DESKTOP_", "GNOME_", "WAYLAND_", "SYSTEMD_", "JOURNAL_", "INVOCATION_ID",
}

func isForeign(key string) bool {
	return slices.Contains(foreign, key) ||
		slices.ContainsFunc(foreignPrefixes, func(p string) bool { return strings.HasPrefix(key, p) })
}

// guestEnv builds the environment of mpirun in guest 0: the user's own, as
// mpirun would have here, and what options name in any case. Options that set
// a variable or withhold some are carried out by mpirun itself.
type guestEnv struct {
	host   Environ
	wanted map[string]bool
}

func newGuestEnv(host Environ) *guestEnv {
	return &guestEnv{host: host, wanted: map[string]bool{}}
}

// option notes what an environment option of the command line names.
func (g *guestEnv) option(u used) {
	switch u.option.means {
	case meaningExport:
		if !strings.Contains(u.value(), "=") {
			g.wanted[u.value()] = true
		}
	case meaningEnvList:
		for _, name := range strings.Split(u.value(), ",") {
			g.wanted[name] = true
		}
	}
}

func (g *guestEnv) list() []string {
	var out []string
	seen := map[string]bool{}
	for _, kv := range slices.Backward(g.host) {
		key, _, ok := strings.Cut(kv, "=")
		if !ok || key == "" || seen[key] || isForeign(key) && !g.wanted[key] {
			continue
		}
		seen[key] = true
		out = append(out, kv)
	}
	slices.Reverse(out)
	return out
}
