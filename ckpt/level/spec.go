package level

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ErrSpec is wrapped by every error about a level that cannot be read.
var ErrSpec = errors.New("bad checkpoint level")

// Kind is the kind of a level.
type Kind string

// The kinds of levels, in the order of what they survive.
const (
	KindLocal   Kind = "local"   // the disk of the node that runs the guest
	KindPartner Kind = "partner" // a whole copy on a node of another failure domain
	KindRS      Kind = "rs"      // Reed–Solomon shards on as many nodes
	KindDir     Kind = "dir"     // a directory that all nodes see
	KindS3      Kind = "s3"      // a bucket of an S3-compatible store
)

// MaxShards is the most shards, data and parity together, that rs can ask for.
const MaxShards = 32

// Limits of what a specification may hold, in bytes.
const (
	maxPath   = 4000
	maxPrefix = 512
)

// Spec says where copies of checkpoints go. Its text form is what users write
// and what [Parse] reads; it never holds credentials. Specs are comparable:
// equal ones mean the same place.
type Spec struct {
	Kind Kind

	// Data and Parity are the numbers of shards of rs: any Data of them give
	// the content back, so that Parity may be lost.
	Data, Parity int

	// Path is the directory of dir: absolute and clean.
	Path string

	// Endpoint of s3 is "http://HOST[:PORT]" or "https://HOST[:PORT]". Empty
	// means AWS, or what the environment says.
	Endpoint string
	// Bucket of s3, and the Prefix of all names in it: without slashes at its
	// ends, may be empty.
	Bucket, Prefix string
	// Region of s3. Empty means that of the environment, or the bucket's.
	Region string
}

// Parse reads a level:
//
//	local
//	partner
//	rs:K+M                                     K data and M parity shards
//	dir:/PATH                                  a directory that all nodes see
//	s3:BUCKET[/PREFIX][?region=REGION]         AWS, or the endpoint of AWS_ENDPOINT_URL
//	s3:http[s]://HOST[:PORT]/BUCKET[/PREFIX][?region=REGION]
//
// Its errors wrap ErrSpec.
func Parse(text string) (Spec, error) {
	kind, rest, more := strings.Cut(text, ":")
	s := Spec{Kind: Kind(kind)}
	var err error
	switch s.Kind {
	case KindLocal, KindPartner:
		if more {
			err = fmt.Errorf("%s takes no argument", kind)
		}
	case KindRS:
		err = s.parseRS(rest)
	case KindDir:
		err = s.parseDir(rest)
	case KindS3:
		err = s.parseS3(rest)
	default:
		err = errors.New("want local, partner, rs:K+M, dir:/PATH, s3:BUCKET[/PREFIX] or s3:https://HOST/BUCKET[/PREFIX]")
	}
	if err != nil {
		return Spec{}, fmt.Errorf("%w %q: %w", ErrSpec, clip(text), err)
	}
	return s, nil
}

// String returns the text that Parse reads as s.
func (s Spec) String() string {
	switch s.Kind {
	case KindRS:
		return fmt.Sprintf("rs:%d+%d", s.Data, s.Parity)
	case KindDir:
		return "dir:" + s.Path
	case KindS3:
		text := "s3:"
		if s.Endpoint != "" {
			text += s.Endpoint + "/"
		}
		text += s.Bucket
		if s.Prefix != "" {
			text += "/" + s.Prefix
		}
		if s.Region != "" {
			text += "?region=" + s.Region
		}
		return text
	default:
		return string(s.Kind)
	}
}

func (s *Spec) parseRS(text string) error {
	data, parity, ok := strings.Cut(text, "+")
	k, errK := strconv.ParseUint(data, 10, 16)
	m, errM := strconv.ParseUint(parity, 10, 16)
	if !ok || errors.Join(errK, errM) != nil {
		return errors.New("want rs:K+M, such as rs:4+2 for 4 data and 2 parity shards")
	}
	if k < 1 || m < 1 || k+m > MaxShards {
		return fmt.Errorf("want at least 1 data and 1 parity shard, and at most %d together", MaxShards)
	}
	s.Data, s.Parity = int(k), int(m)
	return nil
}

func (s *Spec) parseDir(text string) error {
	switch {
	case text == "":
		return errors.New("no directory; want dir:/PATH")
	case !path.IsAbs(text):
		return errors.New("the path must be absolute: it names the same directory on every node")
	case len(text) > maxPath:
		return fmt.Errorf("the path is longer than %d bytes", maxPath)
	case strings.Contains(text, ","):
		return errors.New("the path must have no comma: commas separate levels")
	}
	if err := printable(text); err != nil {
		return fmt.Errorf("the path %w", err)
	}
	if s.Path = path.Clean(text); s.Path == "/" {
		return errors.New("the root of the file system is not a place for checkpoints")
	}
	return nil
}

func (s *Spec) parseS3(text string) error {
	text, query, asked := strings.Cut(text, "?")
	if asked {
		region, ok := strings.CutPrefix(query, "region=")
		if !ok {
			return errors.New("after ? only region=REGION may follow")
		}
		if region == "" || len(region) > 64 || !only(region, "-") || region != strings.ToLower(region) {
			return fmt.Errorf("region %q: want a name such as eu-central-1", clip(region))
		}
		s.Region = region
	}
	if scheme, rest, ok := strings.Cut(text, "://"); ok {
		host, place, _ := strings.Cut(rest, "/")
		endpoint, err := parseEndpoint(scheme, host)
		if err != nil {
			return err
		}
		s.Endpoint, text = endpoint, place
	}
	bucket, prefix, _ := strings.Cut(text, "/")
	if err := validateBucket(bucket); err != nil {
		return err
	}
	prefix = strings.TrimSuffix(prefix, "/")
	if err := validatePrefix(prefix); err != nil {
		return err
	}
	s.Bucket, s.Prefix = bucket, prefix
	return nil
}

// parseEndpoint returns the canonical form of an endpoint.
func parseEndpoint(scheme, host string) (string, error) {
	scheme = strings.ToLower(scheme)
	if scheme != "http" && scheme != "https" {
		return "", fmt.Errorf("endpoint: scheme %q: want http or https", clip(scheme))
	}
	if strings.Contains(host, "@") {
		return "", errors.New("endpoint: credentials do not belong here; use AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a credentials file")
	}
	u, err := url.Parse(scheme + "://" + host)
	if err != nil || u.Hostname() == "" || u.Host != host || !hostname(u.Hostname()) {
		return "", fmt.Errorf("endpoint: %q is no HOST or HOST:PORT", clip(host))
	}
	if strings.HasSuffix(host, ":") {
		return "", errors.New("endpoint: no port after the colon")
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return "", fmt.Errorf("endpoint: port %q: want 1 to 65535", clip(port))
		}
	}
	return scheme + "://" + strings.ToLower(host), nil
}

// hostname reports whether host is a name or an IP address without a zone.
func hostname(host string) bool {
	return len(host) <= 253 && only(host, "-.:_")
}

// validateBucket checks the rules that all S3 stores share:
// docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html.
func validateBucket(b string) error {
	if b == "" {
		return errors.New("no bucket; want s3:BUCKET[/PREFIX] or s3:https://HOST/BUCKET[/PREFIX]")
	}
	ends := func(c byte) bool { return c != '-' && c != '.' }
	if len(b) < 3 || len(b) > 63 || !only(b, "-.") || b != strings.ToLower(b) ||
		!ends(b[0]) || !ends(b[len(b)-1]) || strings.Contains(b, "..") {
		return fmt.Errorf("bucket %q: want 3 to 63 of a–z 0–9 . - with a letter or digit at both ends", clip(b))
	}
	return nil
}

// validatePrefix accepts what needs no escaping anywhere.
func validatePrefix(p string) error {
	if p == "" {
		return nil
	}
	if len(p) > maxPrefix {
		return fmt.Errorf("the prefix is longer than %d bytes", maxPrefix)
	}
	for segment := range strings.SplitSeq(p, "/") {
		if segment == "" || segment == "." || segment == ".." || !only(segment, "-._") {
			return fmt.Errorf("prefix %q: want letters, digits, dots, dashes and underscores between single slashes", clip(p))
		}
	}
	return nil
}

// only reports whether s has ASCII letters, digits and the bytes of more only.
func only(s, more string) bool {
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte(more, c) >= 0:
		default:
			return false
		}
	}
	return true
}

func printable(s string) error {
	if !utf8.ValidString(s) {
		return errors.New("is not UTF-8")
	}
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return errors.New("has characters that cannot be printed")
	}
	return nil
}

// clip shortens what a message quotes.
func clip(s string) string {
	const most = 200
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
