package enrol

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"connectrpc.com/connect"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/internal/access"
	"github.com/mpirun-vft/vft/internal/atomicfile"
	"github.com/mpirun-vft/vft/internal/nodeconf"
	"github.com/mpirun-vft/vft/internal/pki"
	"github.com/mpirun-vft/vft/internal/transport"
)

// Times of a join: an attempt, the pause after all coordinators were asked in
// vain, and how long to look for one that leads.
const (
	attempt  = 10 * time.Second
	pause    = 200 * time.Millisecond
	patience = 20 * time.Second
)

// JoinNode enrols a node and writes its files. Without n.ID the token must
// name the node. It may be repeated: the key that was made first is used again.
func JoinNode(ctx context.Context, token Token, n Node) (id string, err error) {
	if err := n.check(); err != nil {
		return "", err
	}
	certs := filepath.Join(n.Dir, nodeCertificates)
	resp, identity, err := enrolWith(ctx, token, n.ID, certs)
	if err != nil {
		return "", err
	}
	who, err := access.Parse(resp.GetName())
	if err != nil || who.Kind != access.Node {
		return "", fmt.Errorf("the token is for %s, not for a node: use it with `vft user join`", resp.GetName())
	}
	n.ID = who.Name
	replica := resp.GetKind() == vftv1.EnrolKind_ENROL_KIND_REPLICA
	if err := identity.Save(certs); err != nil {
		return "", err
	}
	replicas := known(resp)
	if replica {
		if err := pki.SaveAuthorityKey(certs, resp.GetAuthorityKey()); err != nil {
			return "", err
		}
		if _, err := pki.LoadAuthority(certs); err != nil {
			return "", err
		}
		replicas = slices.DeleteFunc(replicas, func(r nodeconf.Replica) bool { return r.ID == n.ID })
		replicas = append(replicas, nodeconf.Replica{ID: n.ID, Address: n.at(CoordinatorPort)})
	}
	return n.ID, n.conf(replica, replica, replicas).Save(n.Dir)
}

// JoinPerson enrols a user or administrator and writes what they need to use
// the cluster into dir. It returns who they are.
func JoinPerson(ctx context.Context, token Token, dir, images string) (access.Identity, error) {
	if _, err := os.Stat(filepath.Join(dir, nodeconf.ClusterFile)); err == nil {
		return access.Identity{}, fmt.Errorf("%s holds a %s already: choose another directory", dir, nodeconf.ClusterFile)
	}
	resp, identity, err := enrolWith(ctx, token, "", filepath.Join(dir, clientCertificates))
	if err != nil {
		return access.Identity{}, err
	}
	who, err := access.Parse(resp.GetName())
	if err != nil || who.Kind == access.Node {
		return access.Identity{}, fmt.Errorf("the token is for %s, not for a person: use it with `vft node join`", resp.GetName())
	}
	return who, savePerson(dir, identity, resp.GetCluster(), images, known(resp))
}

func known(resp *vftv1.EnrolResponse) []nodeconf.Replica {
	var out []nodeconf.Replica
	for _, r := range resp.GetReplicas() {
		out = append(out, nodeconf.Replica{ID: r.GetId(), Address: r.GetAddress()})
	}
	return out
}

// enrolWith has a key certified that is made, and stays, in the directory.
func enrolWith(ctx context.Context, token Token, name, certs string) (*vftv1.EnrolResponse, pki.Identity, error) {
	key, err := ownKey(certs)
	if err != nil {
		return nil, pki.Identity{}, err
	}
	request, err := pki.NewRequest(key)
	if err != nil {
		return nil, pki.Identity{}, err
	}
	resp, err := ask(ctx, token, &vftv1.EnrolRequest{Token: token.ID, Secret: token.Secret, Name: name, Request: request})
	if err != nil {
		return nil, pki.Identity{}, fmt.Errorf("enrolling: %w", err)
	}
	if got, err := pki.FingerprintOf(resp.GetAuthority()); err != nil || got != token.Authority {
		return nil, pki.Identity{}, errors.New("enrolling: the cluster answered with another authority than the token's")
	}
	id := pki.Identity{CA: resp.GetAuthority(), Cert: resp.GetCertificate(), Key: key}
	_, err = id.TLS() // the certificate is of our key
	return resp, id, err
}

// ownKey returns the key in a certificate directory, and makes it when there
// is none.
func ownKey(certs string) ([]byte, error) {
	path := filepath.Join(certs, pki.KeyFile)
	key, err := os.ReadFile(path)
	if !errors.Is(err, os.ErrNotExist) {
		return key, err
	}
	if err := os.MkdirAll(certs, 0o700); err != nil {
		return nil, fmt.Errorf("making the certificate directory: %w", err)
	}
	if key, err = pki.NewKey(); err != nil {
		return nil, err
	}
	return key, atomicfile.WriteFile(path, key, 0o600)
}

// ask finds the coordinator that leads among those of the token and has it
// certify the request.
func ask(ctx context.Context, token Token, req *vftv1.EnrolRequest) (*vftv1.EnrolResponse, error) {
	ep := transport.New(pki.Pinned(token.Authority), nil)
	defer ep.Close()
	web := &http.Transport{DialTLSContext: func(ctx context.Context, _, address string) (net.Conn, error) {
		return ep.Dial(ctx, address, transport.ProtoEnrol)
	}}
	defer web.CloseIdleConnections()
	addresses := append([]string(nil), token.Addresses...)
	begun := time.Now()
	for {
		var errs []error
		for i := 0; i < len(addresses) && i < 16; i++ {
			actx, cancel := context.WithTimeout(ctx, attempt)
			client := vftv1connect.NewEnrolmentServiceClient(&http.Client{Transport: web}, "https://"+addresses[i], connect.WithReadMaxBytes(1<<20))
			resp, err := client.Enrol(actx, connect.NewRequest(req))
			cancel()
			if err == nil {
				return resp.Msg, nil
			}
			var remote *connect.Error
			if errors.As(err, &remote) && connect.IsWireError(err) && remote.Code() != connect.CodeUnavailable {
				return nil, err // an answer
			}
			if errors.Is(err, pki.ErrOtherCluster) {
				return nil, fmt.Errorf("%s: %w", addresses[i], err)
			}
			if hint := leader(remote); hint != "" && !slices.Contains(addresses, hint) {
				addresses = append(addresses, hint)
			}
			errs = append(errs, fmt.Errorf("%s: %w", addresses[i], err))
		}
		if time.Since(begun) > patience {
			return nil, fmt.Errorf("no coordinator answered: %w", errors.Join(errs...))
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), errors.Join(errs...))
		case <-time.After(pause):
		}
	}
}

// leader is where a coordinator that does not lead says that the leader is.
func leader(err *connect.Error) string {
	if err == nil {
		return ""
	}
	for _, d := range err.Details() {
		if v, err := d.Value(); err == nil {
			if hint, ok := v.(*vftv1.LeaderHint); ok {
				return hint.GetAddress()
			}
		}
	}
	return ""
}
