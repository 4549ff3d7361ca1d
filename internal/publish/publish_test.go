package publish

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	vftv1 "github.com/mpirun-vft/vft/api/gen/vft/v1"
)

func TestParse(t *testing.T) {
	for s, want := range map[string]*vftv1.PublishedPort{
		"8080:guest0:80":           {Port: 8080, GuestPort: 80},
		"127.0.0.1:8080:guest12:9": {Address: "127.0.0.1", Port: 8080, Guest: 12, GuestPort: 9},
		"[::1]:8080:guest1:80":     {Address: "::1", Port: 8080, Guest: 1, GuestPort: 80},
	} {
		got, err := Parse(s)
		require.NoError(t, err, s)
		assert.True(t, proto.Equal(want, got), "%s: %v", s, got)
		assert.Equal(t, s, Outer(got)+":"+Inner(got))
	}
	for _, s := range []string{
		"", "8080", "8080:80", "guest0:80", "8080:guest:80", "8080:0:80", "8080:guest0:0", "0:guest0:80",
		"8080:guest0:65536", "70000:guest0:80", "8080:guest0:80/udp", "localhost:8080:guest0:80", "::1:8080:guest0:80",
		"8080:guest-1:80", "8080:guest70000:80", ":8080:guest0:80",
	} {
		_, err := Parse(s)
		assert.ErrorContains(t, err, "8080:guest0:80", s)
	}
}

// FuzzParse: what is accepted is written as it was meant.
func FuzzParse(f *testing.F) {
	f.Add("8080:guest0:80")
	f.Add("[fe80::1%eth0]:8080:guest0:80")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(Outer(p) + ":" + Inner(p))
		if err != nil || !proto.Equal(p, again) {
			t.Fatalf("%q became %v, then %v: %v", s, p, again, err)
		}
	})
}
