package wrapper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"time"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

// Print answers a command that only wants to be told something (see
// [Command.Show]) on w, and returns the exit code. version is that of vft.
// --help and --version are answered by this machine's own mpirun, if it has
// one, and a line about vft.
func (c *Command) Print(ctx context.Context, w io.Writer, version string) int {
	switch c.Show {
	case ShowOwn:
		_, _ = io.WriteString(w, ownHelp())
		return 0
	case ShowVersion:
		_, _ = fmt.Fprintf(w, "mpirun-vft %s\n", version)
		out, err := c.hostMPI(ctx)
		if err != nil {
			_, _ = io.WriteString(w, "No mpirun is installed here; jobs use the one in their guests.\n")
			return 0
		}
		_, _ = w.Write(out)
		return 0
	default:
		_, _ = fmt.Fprintf(w, "mpirun-vft %s runs mpirun's command lines in guests that survive failures; --vft-help shows its own options.\n\n", version)
		out, err := c.hostMPI(ctx)
		if err != nil {
			_, _ = io.WriteString(w, ownUsage)
			return 0
		}
		_, _ = w.Write(out)
		return 0
	}
}

// hostMPI runs this machine's mpirun with the arguments that asked to be shown
// something.
func (c *Command) hostMPI(ctx context.Context) ([]byte, error) {
	names := []string{"mpirun", "mpirun.openmpi", "mpiexec", "mpiexec.hydra"}
	switch {
	case c.Flavour == vftv1.Flavour_FLAVOUR_OPENMPI || c.MPI == vftv1.Flavour_FLAVOUR_OPENMPI:
		names = []string{"mpirun.openmpi", "mpirun"}
	case c.Flavour == vftv1.Flavour_FLAVOUR_MPICH || c.MPI == vftv1.Flavour_FLAVOUR_MPICH:
		names = []string{"mpiexec.hydra", "mpirun.mpich", "mpiexec"}
	}
	i := slices.IndexFunc(names, func(n string) bool { _, err := exec.LookPath(n); return err == nil })
	if i < 0 {
		return nil, exec.ErrNotFound
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, names[i], c.ShowArgs...)
	// Showing help is harmless, also for root.
	cmd.Env = append(cmd.Environ(), "OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || out.Len() == 0) {
		return nil, err
	}
	return out.Bytes(), nil
}

const ownUsage = `Usage: mpirun-vft [options] PROGRAM [arguments] [: [options] PROGRAM [arguments]]...

  -n, -np N              number of ranks
  --host HOST[:SLOTS],…  nodes to run on
  --hostfile, -f FILE    file that names the nodes to run on
  -x VAR[=VALUE]         pass an environment variable (Open MPI)
  -genv VAR VALUE        set an environment variable (MPICH)
  --oversubscribe        allow more ranks than slots (Open MPI)
  --vft-help             options of mpirun-vft itself

Every other option of mpirun is passed on to the mpirun in the guests.
`

// ownHelp describes our options.
func ownHelp() string {
	known := ownOptions()
	names := make([]string, 0, len(known))
	for n := range known {
		names = append(names, n)
	}
	slices.Sort(names)
	var b strings.Builder
	b.WriteString("mpirun-vft takes mpirun's options and these of its own, before the program:\n\n")
	for _, n := range names {
		head := "  " + ownPrefix + n
		if h := known[n].hint; h != "" {
			head += " " + h
		}
		fmt.Fprintf(&b, "%s\n", head)
		for _, line := range wrap(known[n].help, 70) {
			fmt.Fprintf(&b, "        %s\n", line)
		}
	}
	b.WriteString("\nValues may also be written --vft-NAME=VALUE. docs/MPIRUN.md says more, exit codes among it.\n")
	return b.String()
}

func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, w := range strings.Fields(text) {
		if line != "" && len(line)+1+len(w) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += w
	}
	return append(lines, line)
}
