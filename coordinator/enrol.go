package coordinator

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
	"github.com/mpirun-vft/vft/api/gen/vft/v1/vftv1connect"
	"github.com/mpirun-vft/vft/internal/access"
	"github.com/mpirun-vft/vft/internal/pki"
)

// maxTokenLife bounds how long a token may be valid.
const maxTokenLife = 7 * 24 * time.Hour

// errNoAuthority says that the leader cannot sign.
var errNoAuthority = errors.New("the coordinator that leads has no key of the cluster's authority, so nobody can enrol here")

// Enrolment answers those that have no certificate yet.
type Enrolment struct{ c *Coordinator }

var _ vftv1connect.EnrolmentServiceHandler = (*Enrolment)(nil)

// Enrolment is the half of the coordinator that is reached without a certificate.
func (c *Coordinator) Enrolment() *Enrolment { return &Enrolment{c} }

// CreateToken implements vftv1connect.CoordinatorServiceHandler.
func (c *Coordinator) CreateToken(ctx context.Context, req *connect.Request[vftv1.CreateTokenRequest]) (*connect.Response[vftv1.CreateTokenResponse], error) {
	if _, err := c.leader(); err != nil {
		return nil, c.fault(err)
	}
	if c.cfg.Authority == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errNoAuthority)
	}
	m := req.Msg
	ttl := time.Duration(m.GetTtl())
	if ttl <= 0 || ttl > maxTokenLife {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("a token is valid for up to %v, not for %v", maxTokenLife, ttl))
	}
	if m.GetName() != "" {
		if err := access.CheckName(m.GetName()); err != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, err)
		}
	}
	token := &vftv1.Token{
		Id: m.GetId(), Secret: m.GetSecret(), Kind: m.GetKind(), Name: m.GetName(), Expires: c.cfg.Now().Add(ttl).UnixNano(),
	}
	if _, err := c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_AddToken{AddToken: &vftv1.AddToken{Token: token}}}); err != nil {
		return nil, c.fault(err)
	}
	replicas, err := c.replicas()
	if err != nil {
		return nil, c.fault(err)
	}
	c.log.Info("token made", "token", m.GetId(), "kind", m.GetKind(), "name", m.GetName(), "by", access.From(ctx).String())
	return connect.NewResponse(&vftv1.CreateTokenResponse{Expires: c.store.token(m.GetId()).GetExpires(), Replicas: replicas}), nil
}

// replicas is where the coordinators are.
func (c *Coordinator) replicas() ([]*vftv1.EnrolReplica, error) {
	conf := c.node.raft.GetConfiguration()
	if err := conf.Error(); err != nil {
		return nil, fmt.Errorf("%w: %w", errNotLeader, err)
	}
	var out []*vftv1.EnrolReplica
	for _, s := range conf.Configuration().Servers {
		address := string(s.Address) // of Raft and RPC alike
		if known := c.store.replica(string(s.ID)); known != "" {
			address = known
		}
		out = append(out, &vftv1.EnrolReplica{Id: string(s.ID), Address: address})
	}
	return out, nil
}

// commonName is what a token's bearer is certified as.
func commonName(kind vftv1.EnrolKind, name string) string {
	who := access.Identity{Name: name}
	switch kind {
	case vftv1.EnrolKind_ENROL_KIND_NODE, vftv1.EnrolKind_ENROL_KIND_REPLICA:
		who.Kind = access.Node
	case vftv1.EnrolKind_ENROL_KIND_USER:
		who.Kind = access.User
	case vftv1.EnrolKind_ENROL_KIND_ADMIN:
		who.Kind = access.Admin
	}
	return who.String()
}

// Enrol implements vftv1connect.EnrolmentServiceHandler.
func (e *Enrolment) Enrol(ctx context.Context, req *connect.Request[vftv1.EnrolRequest]) (*connect.Response[vftv1.EnrolResponse], error) {
	c, m := e.c, req.Msg
	if _, err := c.leader(); err != nil {
		return nil, c.fault(err)
	}
	if c.cfg.Authority == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errNoAuthority)
	}
	secret := sha256.Sum256(m.GetSecret())
	redeem := &vftv1.RedeemToken{Id: m.GetToken(), Secret: secret[:], Name: m.GetName()}
	token := c.store.token(m.GetToken())
	if redeem.GetName() == "" {
		redeem.Name = token.GetName()
	}
	request, err := pki.ReadRequest(m.GetRequest())
	if err == nil {
		err = access.CheckName(redeem.GetName())
	}
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	redeem.PublicKey = request.Digest[:]
	// Strangers cannot make the log grow: what will be refused is refused here.
	if err := c.store.mayRedeem(redeem, c.cfg.Now().UnixNano()); err != nil {
		c.log.Warn("refused to enrol somebody", "name", redeem.GetName(), "token", m.GetToken(), "err", err)
		return nil, c.fault(err)
	}
	if _, err := c.apply(ctx, &vftv1.Command{Body: &vftv1.Command_RedeemToken{RedeemToken: redeem}}); err != nil {
		return nil, c.fault(err)
	}
	resp := &vftv1.EnrolResponse{
		Name: commonName(token.GetKind(), redeem.GetName()), Authority: c.cfg.Authority.Certificate(), Cluster: c.cfg.Authority.Name(), Kind: token.GetKind(),
	}
	if resp.Certificate, err = c.cfg.Authority.Certify(request, resp.GetName(), c.cfg.Now()); err != nil {
		return nil, c.fault(err)
	}
	if resp.Replicas, err = c.replicas(); err != nil {
		return nil, c.fault(err)
	}
	if token.GetKind() == vftv1.EnrolKind_ENROL_KIND_REPLICA {
		if resp.AuthorityKey, err = c.cfg.Authority.Key(); err != nil {
			return nil, c.fault(err)
		}
	}
	c.log.Info("enrolled", "name", resp.GetName(), "token", m.GetToken())
	return connect.NewResponse(resp), nil
}

// mayAdd lets in admins, and a node that was enrolled as a replica for itself.
func (c *Coordinator) mayAdd(ctx context.Context, who access.Identity, request proto.Message) error {
	req, ok := request.(*vftv1.AddReplicaRequest)
	if !ok || who.Kind != access.Node {
		return access.Only(access.Admin)(ctx, who, request)
	}
	if _, err := c.leader(); err != nil { // others may not have heard of it yet
		return c.fault(err)
	}
	if who.Name == req.GetId() && c.store.enrolled(who.Name).GetReplica() {
		return nil
	}
	return access.Denied(who, "only administrators, and nodes that joined with a token made by `vft cluster token --replica` for themselves, add coordinator replicas")
}

func (s *store) token(id string) *vftv1.Token {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.state.Token(id)
}

func (s *store) enrolled(node string) *vftv1.Enrolled {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.state.Enrolled(node)
}

func (s *store) mayRedeem(c *vftv1.RedeemToken, at int64) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.state.MayRedeem(c, at)
}
