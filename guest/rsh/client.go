package rsh

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Exit codes of [Main] for failures of its own, as ssh has them.
const (
	exitUsage  = 2
	exitFailed = 255
)

const dialTimeout = 20 * time.Second

// Main is the command "rsh [options] HOST COMMAND...": options are ignored, as
// is "user@" before the host. It returns the command's exit code, 128 plus the
// number of the signal that ended it, or 255 when it could not be run.
func Main(ctx context.Context, args []string, port int, stdin io.Reader, stdout, stderr io.Writer) int {
	host, command, err := parseArgs(args)
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "rsh: %v\n", err)
		return exitUsage
	}
	code, err := Run(ctx, net.JoinHostPort(host, strconv.Itoa(port)), self(command), stdin, stdout, stderr)
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "rsh: %s: %v\n", host, err)
		return exitFailed
	}
	return code
}

// parseArgs splits ssh-like arguments. The options of ssh that take a value
// are known so that the value is not taken for the host.
func parseArgs(args []string) (host, command string, err error) {
	const withValue = "BbcDEeFIiJLlmOopQRSWw"
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		opt := args[0]
		args = args[1:]
		if opt == "--" {
			break
		}
		if len(opt) == 2 && strings.Contains(withValue, opt[1:]) && len(args) > 0 {
			args = args[1:]
		}
	}
	if len(args) < 2 {
		return "", "", errors.New("want: rsh [options] HOST COMMAND")
	}
	host = args[0]
	if _, h, ok := strings.Cut(host, "@"); ok {
		host = h
	}
	args = args[1:]
	// Options may follow the host, as in "ssh HOST -x COMMAND".
	for len(args) > 1 && (args[0] == "-x" || args[0] == "-n" || args[0] == "-q") {
		args = args[1:]
	}
	return host, strings.Join(args, " "), nil
}

// self makes a request that carries this process's surroundings.
func self(command string) Request {
	umask := syscall.Umask(0)
	syscall.Umask(umask)
	r := Request{
		Command: command,
		Env:     os.Environ(),
		UID:     uint32(os.Getuid()), //nolint:gosec // ids are not negative on Linux
		GID:     uint32(os.Getgid()), //nolint:gosec // as above
		Umask:   uint32(umask),       //nolint:gosec // a mask of nine bits
	}
	r.Dir, _ = os.Getwd()
	if groups, err := os.Getgroups(); err == nil {
		for _, g := range groups {
			r.Groups = append(r.Groups, uint32(g)) //nolint:gosec // as above
		}
	}
	if u, err := user.LookupId(strconv.Itoa(os.Getuid())); err == nil {
		r.User, r.Home = u.Username, u.HomeDir
	}
	return r
}

// Run has the server at address run req and returns the exit code, 128 plus
// the signal's number when one ended the command.
func Run(ctx context.Context, address string, req Request, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	c, err := dial(ctx, address)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if err := writeRequest(c, req); err != nil {
		return 0, fmt.Errorf("send the command: %w", err)
	}
	out := &frameWriter{w: c}
	// Not waited for: a read of a terminal cannot be interrupted, and the
	// command's end is what counts.
	go func() {
		buf := make([]byte, maxFrame)
		for stdin != nil {
			n, err := stdin.Read(buf)
			if n > 0 && out.send(frameStdin, buf[:n]) != nil {
				return
			}
			if err != nil {
				break
			}
		}
		_ = out.send(frameStdinEOF, nil)
	}()
	buf := make([]byte, maxFrame)
	for {
		kind, p, err := readFrame(c, buf)
		if err != nil {
			return 0, fmt.Errorf("the guest hung up before the command ended: %w", err)
		}
		switch kind {
		case frameStdout:
			_, err = stdout.Write(p)
		case frameStderr:
			_, err = stderr.Write(p)
		case frameFailed:
			return 0, errors.New(string(p))
		case frameExit:
			if len(p) != 8 {
				return 0, fmt.Errorf("%w: exit status of %d bytes", errProtocol, len(p))
			}
			if sig := binary.BigEndian.Uint32(p[4:]); sig != 0 {
				return 128 + int(sig), nil
			}
			return int(binary.BigEndian.Uint32(p)), nil
		default:
			err = fmt.Errorf("%w: frame type %d", errProtocol, kind)
		}
		if err != nil {
			return 0, err
		}
	}
}

// dial retries for a while: the other guest may still be booting.
func dial(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", address)
		if err == nil {
			return c, nil
		}
		var dns *net.DNSError
		if errors.As(err, &dns) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("no remote start service within %s: %w", dialTimeout, err)
		case <-time.After(wait):
		}
	}
}
