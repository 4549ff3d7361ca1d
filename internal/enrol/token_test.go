package enrol

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mpirun-vft/vft/internal/pki"
)

func TestToken(t *testing.T) {
	token, err := NewToken(pki.Fingerprint{1, 2, 3}, []string{"10.0.0.1:7700", "n2.example:7700", "[::1]:7700"})
	require.NoError(t, err)
	text := token.String()
	back, err := ParseToken(" " + text + "\n")
	require.NoError(t, err)
	assert.Equal(t, token, back)
	other, err := NewToken(pki.Fingerprint{}, nil)
	require.NoError(t, err)
	assert.NotEqual(t, token.Secret, other.Secret)
	assert.NotContains(t, text, string(token.Digest()))

	fields := strings.SplitN(text, ".", 5)
	for name, change := range map[string]func([]string){
		"another version":   func(f []string) { f[0] = "vft2" },
		"id in capitals":    func(f []string) { f[1] = "ABCDEF012345" },
		"a path for an id":  func(f []string) { f[1] = "../../x" },
		"a short secret":    func(f []string) { f[2] = f[2][:8] },
		"no fingerprint":    func(f []string) { f[3] = "" },
		"no address":        func(f []string) { f[4] = "" },
		"address, no port":  func(f []string) { f[4] = "10.0.0.1" },
		"one empty address": func(f []string) { f[4] += "," },
	} {
		f := append([]string(nil), fields...)
		change(f)
		_, err := ParseToken(strings.Join(f, "."))
		assert.ErrorIs(t, err, ErrToken, name)
	}
	for _, text := range []string{"", "vft1", text[:40], strings.Repeat("x", 5000)} {
		_, err := ParseToken(text)
		assert.ErrorIs(t, err, ErrToken)
	}
}

func FuzzParseToken(f *testing.F) {
	token, err := NewToken(pki.Fingerprint{7}, []string{"127.0.0.1:7700"})
	require.NoError(f, err)
	f.Add(token.String())
	f.Add("vft1.0.0.0.0")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err == nil && token.String() != strings.TrimSpace(text) {
			t.Errorf("%q is read as %q", text, token.String())
		}
	})
}
