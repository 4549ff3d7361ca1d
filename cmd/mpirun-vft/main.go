// Command mpirun-vft is typed where mpirun was typed: it runs the program's
// ranks in guests and keeps the job alive when machines fail. docs/MPIRUN.md
// is its manual.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/daemon"
	"github.com/mpirun-vft/vft/guest/image"
	"github.com/mpirun-vft/vft/guest/stage"
	"github.com/mpirun-vft/vft/internal/images"
	"github.com/mpirun-vft/vft/internal/nodeconf"
	"github.com/mpirun-vft/vft/internal/transport"
	"github.com/mpirun-vft/vft/internal/version"
	wrapper "github.com/mpirun-vft/vft/mpirun-wrapper"
)

func main() {
	code, err := run(context.Background(), os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "mpirun-vft: %v\n", err)
	}
	os.Exit(code)
}

func run(ctx context.Context, args []string) (int, error) {
	dir, err := os.Getwd()
	if err != nil {
		return wrapper.ExitSoftware, fmt.Errorf("finding the working directory: %w", err)
	}
	parser := wrapper.Parser{Env: os.Environ(), Dir: dir, Flavour: flavourOf}
	cmd, err := parser.Parse(args)
	if err != nil {
		return wrapper.ExitCode(err), err
	}
	if cmd.Show != wrapper.ShowNothing {
		return cmd.Print(ctx, os.Stdout, version.String()), nil
	}
	log, closeLog, err := logger()
	if err != nil {
		return wrapper.ExitConfig, err
	}
	defer closeLog()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	w := &wiring{log: log, images: images.DefaultCache(), fail: fail}
	return wrapper.Run(ctx, cmd, wrapper.Deps{Cluster: w.cluster, Stage: w.archive, Stdin: os.Stdin, Log: log})
}

// wiring gives the wrapper what it needs from the rest of the house.
type wiring struct {
	log    *slog.Logger
	fail   context.CancelCauseFunc
	images string // image cache: this machine's, or the one that the cluster's file names
}

func (w *wiring) cluster(ctx context.Context, cmd *wrapper.Command, _ *wrapper.Plan) (*wrapper.Connection, func(), error) {
	if cmd.Cluster != "" {
		return w.join(cmd)
	}
	return w.embed(ctx, cmd)
}

// logger writes what the embedded daemons and the client log to the file that
// VFT_LOG names; without it nothing is logged, as stderr is the program's.
func logger() (*slog.Logger, func(), error) {
	path := os.Getenv("VFT_LOG")
	if path == "" {
		return slog.New(slog.DiscardHandler), func() {}, nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600) //nolint:gosec // the user names their own file
	if err != nil {
		return nil, nil, fmt.Errorf("opening the log that VFT_LOG names: %w", err)
	}
	return slog.New(slog.NewJSONHandler(f, &slog.HandlerOptions{Level: slog.LevelDebug})), func() { _ = f.Close() }, nil
}

// flavourOf tells what MPI a program is linked with.
func flavourOf(path string) (vftv1.Flavour, error) {
	switch f, err := stage.FlavourOf(context.Background(), path, os.Getenv("LD_LIBRARY_PATH")); {
	case err != nil:
		return vftv1.Flavour_FLAVOUR_UNSPECIFIED, programError(err)
	case f == stage.OpenMPI:
		return vftv1.Flavour_FLAVOUR_OPENMPI, nil
	case f == stage.MPICH:
		return vftv1.Flavour_FLAVOUR_MPICH, nil
	default:
		return vftv1.Flavour_FLAVOUR_UNSPECIFIED, nil
	}
}

// join connects to the cluster that the command names.
func (w *wiring) join(cmd *wrapper.Command) (*wrapper.Connection, func(), error) {
	conf, err := nodeconf.LoadCluster(cmd.Cluster)
	if err != nil {
		return nil, nil, &wrapper.Error{Code: wrapper.ExitUnavailable, Msg: err.Error(), Err: err}
	}
	id, err := conf.Identity()
	if err != nil {
		return nil, nil, &wrapper.Error{Code: wrapper.ExitConfig, Msg: err.Error(), Err: err}
	}
	tls, err := id.TLS()
	if err != nil {
		return nil, nil, &wrapper.Error{Code: wrapper.ExitConfig, Msg: err.Error(), Err: err}
	}
	if conf.Images != "" {
		w.images = conf.Images
	}
	image, err := w.imageID(cmd.Image)
	if err != nil {
		return nil, nil, err
	}
	ep := transport.New(tls, nil)
	return &wrapper.Connection{
		Coordinators: conf.Coordinators, Coordinator: daemon.CoordinatorClient(ep), Sidecar: daemon.SidecarClient(ep), Image: image,
	}, ep.Close, nil
}

// embed starts a cluster in this process for the length of the job.
func (w *wiring) embed(ctx context.Context, cmd *wrapper.Command) (*wrapper.Connection, func(), error) {
	image, err := w.imageID(cmd.Image)
	if err != nil {
		return nil, nil, err
	}
	e, err := daemon.StartEmbedded(ctx, w.images, "", w.log)
	if err != nil {
		return nil, nil, &wrapper.Error{Code: wrapper.ExitUnavailable, Msg: err.Error(), Err: err}
	}
	// What ends the embedded cluster ends the job: there is nobody to ask again.
	context.AfterFunc(e.Context(), func() {
		if err := e.Err(); err != nil {
			w.fail(&wrapper.Error{Code: wrapper.ExitUnavailable, Msg: err.Error(), Err: err})
		}
	})
	cleanup := func() {
		if err := e.Close(); err != nil {
			w.log.Error("ending the embedded cluster", "err", err)
		}
	}
	return &wrapper.Connection{
		Coordinators: []string{e.Coordinator}, Coordinator: daemon.CoordinatorClient(e.Endpoint),
		Sidecar: daemon.SidecarClient(e.Endpoint), Image: image,
	}, cleanup, nil
}

// imageID is the id of the image that a job runs on, whose bytes are checked.
func (w *wiring) imageID(id string) (string, error) {
	img, err := images.Open(w.images, id)
	if err != nil {
		return "", &wrapper.Error{Code: wrapper.ExitConfig, Msg: err.Error(), Err: err}
	}
	if err := image.Verify(img); err != nil {
		return "", &wrapper.Error{Code: wrapper.ExitConfig, Msg: err.Error(), Err: err}
	}
	return filepath.Base(img.Dir), nil
}

// archive writes what every guest unpacks before the program starts and
// returns the variables that the programs need to find their libraries.
func (w *wiring) archive(ctx context.Context, req wrapper.StageRequest, out io.Writer) ([]string, error) {
	img, err := images.Open(w.images, req.Image)
	if err != nil {
		return nil, err
	}
	env := wrapper.Environ(req.Env)
	path, _ := env.Lookup("PATH")
	libraries, _ := env.Lookup("LD_LIBRARY_PATH")
	whole := &stage.Plan{}
	for _, program := range req.Programs {
		plan, err := stage.Make(ctx, stage.Options{
			Program: program, Dir: req.Dirs[0], Path: path, LibraryPath: libraries, Files: req.Files,
			Image: stage.Contents{Libraries: img.Info.Libraries, Programs: img.Info.Programs},
		})
		if err != nil {
			return nil, programError(err)
		}
		whole.Add(plan)
	}
	for _, dir := range req.Dirs {
		if err := whole.AddDir(dir); err != nil {
			return nil, err
		}
	}
	_, err = whole.WriteTar(out)
	return whole.Env, err
}

// programError gives what is wrong with the user's program its exit code.
func programError(err error) error {
	var program *stage.ProgramError
	var arch *stage.ArchitectureError
	var library *stage.LibraryError
	code := wrapper.ExitSoftware
	switch {
	case errors.Is(err, stage.ErrMissing):
		code = wrapper.ExitNotFound
	case errors.As(err, &program), errors.As(err, &arch), errors.As(err, &library):
		code = wrapper.ExitNotExec
	}
	return &wrapper.Error{Code: code, Msg: err.Error(), Err: err}
}
