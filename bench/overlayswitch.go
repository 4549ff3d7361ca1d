package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mpirun-vft/vft/guest"
	"github.com/mpirun-vft/vft/overlay"
)

// SwitchConfig is what a process needs that is nothing but a node's switch.
type SwitchConfig struct {
	Node, Listen     string
	Guests           []SwitchGuest // by index
	Certificate, Key []byte        // PEM, the same on all nodes
	Ready            string        // this, with the node behind it, is the name of a file that is made when frames flow
}

// SwitchGuest is where a guest is.
type SwitchGuest struct{ Node, Address, Socket string }

// RunSwitch serves one network of one node until ctx ends.
func RunSwitch(ctx context.Context, cfg SwitchConfig) error {
	secure, err := cfg.tls()
	if err != nil {
		return err
	}
	dialer := tls.Dialer{Config: secure}
	s, err := overlay.New(overlay.Config{
		Node: cfg.Node, Session: uint64(time.Now().UnixNano()), MAC: guest.MAC,
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		},
	})
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		s.Close()
		return fmt.Errorf("listen for links: %w", err)
	}
	group.Go(func() error { return s.Run(ctx) })
	group.Go(func() error {
		<-ctx.Done()
		return l.Close()
	})
	group.Go(func() error {
		for {
			conn, err := l.Accept()
			if err != nil {
				return ctx.Err()
			}
			group.Go(func() error {
				_ = s.ServeLink(ctx, tls.Server(conn, secure))
				return nil
			})
		}
	})
	group.Go(func() error { return cfg.open(ctx, s) })
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// open opens the network and says so when frames can flow.
func (c SwitchConfig) open(ctx context.Context, s *overlay.Switch) error {
	var members []overlay.Member
	away := false
	for i, g := range c.Guests {
		members = append(members, overlay.Member{Guest: i, Node: g.Node, Address: g.Address})
		away = away || g.Node != c.Node
	}
	network, err := s.Open(overlay.NetworkID{Job: "bench", Incarnation: 1}, members)
	if err != nil {
		return err
	}
	for i, g := range c.Guests {
		if g.Node == c.Node {
			if _, err := network.AttachPort(ctx, i, g.Socket); err != nil {
				return err
			}
		}
	}
	if away {
		err := waitFor(ctx, "link", func() bool { links := s.Stats().Links; return len(links) > 0 && links[0].Up })
		if err != nil {
			return err
		}
	}
	if err := os.WriteFile(c.Ready+c.Node, nil, 0o600); err != nil {
		return fmt.Errorf("say that the switch is ready: %w", err)
	}
	return nil
}

// tls is mutual TLS 1.3, as between nodes, with the benchmark's certificate
// for everybody.
func (c SwitchConfig) tls() (*tls.Config, error) {
	pair, err := tls.X509KeyPair(c.Certificate, c.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate of the link: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(c.Certificate)
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, RootCAs: pool, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13,
	}, nil
}

// selfSigned makes a certificate for the loopback address, for an hour.
func selfSigned() (certificate, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("key of the link: %w", err)
	}
	now := time.Now()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate of the link: %w", err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, nil, fmt.Errorf("key of the link: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), nil
}
