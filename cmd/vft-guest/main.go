// Command vft-guest is the only program that vft adds to a guest. As process 1
// it boots the guest, as "vft-guest agent" it serves the host, and as
// /usr/lib/vft/rsh it starts commands on the other guests of the job.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/mpirun-vft/vft/guest"
	"github.com/mpirun-vft/vft/guest/agent"
	"github.com/mpirun-vft/vft/guest/boot"
	"github.com/mpirun-vft/vft/guest/rsh"
	"github.com/mpirun-vft/vft/guest/serial"
)

// version is set by the linker.
var version = "devel"

const portTimeout = 10 * time.Second

func main() {
	switch {
	case filepath.Base(os.Args[0]) == "rsh":
		os.Exit(remote(os.Args[1:]))
	case os.Getpid() == 1 || len(os.Args) > 1 && os.Args[1] == "init":
		boot.Fail(boot.Init())
	case len(os.Args) > 1 && os.Args[1] == "agent":
		if err := serve(context.Background()); err != nil {
			fmt.Fprintf(os.Stderr, "vft-guest: %v\n", err)
			os.Exit(1)
		}
	case len(os.Args) > 1 && os.Args[1] == "rsh":
		os.Exit(remote(os.Args[2:]))
	case len(os.Args) > 1 && os.Args[1] == "version":
		fmt.Println(version)
	default:
		fmt.Fprintln(os.Stderr, "usage: vft-guest init | agent | rsh [options] HOST COMMAND... | version")
		os.Exit(2)
	}
}

func remote(args []string) int {
	return rsh.Main(context.Background(), args, guest.RemotePort, os.Stdin, os.Stdout, os.Stderr)
}

// serve answers the host and the other guests until one of them cannot be
// served any more; process 1 then starts the program again.
func serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	cfg, err := guest.ParseKernelArgs(string(cmdline))
	if err != nil {
		return err
	}
	address, err := cfg.Address()
	if err != nil {
		return err
	}
	a := agent.New(agent.Config{
		Root: "/", Version: version, Index: cfg.Index, Size: cfg.Size, Address: address.String(),
		MPIFile: "/usr/lib/vft/mpi", Poweroff: boot.Poweroff, Log: log,
	})
	dev, err := boot.FindPort(guest.AgentPort, portTimeout)
	if err != nil {
		return err
	}
	port, err := boot.OpenPort(dev)
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", ":"+strconv.Itoa(guest.RemotePort))
	if err != nil {
		return err
	}
	line := serial.NewListener(port)
	ends := make(chan error, 3)
	go func() { ends <- line.Run(ctx) }()
	go func() { ends <- a.ServeSerial(line) }()
	go func() { ends <- a.ServeRemote(ctx, l) }()
	// The process ends with the first of them: its owner is process 1.
	return errors.Join(errors.New("the agent stopped serving"), <-ends)
}
