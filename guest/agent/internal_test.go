package agent

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCopyExactly(t *testing.T) {
	for name, tt := range map[string]struct {
		data string
		size int64
		want string
	}{
		"same":   {"abc", 3, "abc"},
		"grown":  {"abcdef", 3, "abc"},
		"shrunk": {"a", 4, "a\x00\x00\x00"},
	} {
		var b bytes.Buffer
		if err := copyExactly(&b, strings.NewReader(tt.data), tt.size); err != nil || b.String() != tt.want {
			t.Errorf("%s: %q, %v", name, b.String(), err)
		}
	}
}

func TestEnsureUser(t *testing.T) {
	root := t.TempDir()
	etc := filepath.Join(root, "etc")
	if err := os.MkdirAll(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(etc, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if err := os.WriteFile(filepath.Join(etc, "passwd"), []byte("root:x:0:0::/root:/bin/sh\nbob:x:7:7::/:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	me, my := uint32(os.Getuid()), uint32(os.Getgid())
	users := []User{
		{UID: me, GID: my, Name: "alice", Home: "/home/alice", Groups: []Group{{4000, "staff"}}},
		{UID: me, GID: my, Name: "alice", Home: "/home/alice", Groups: []Group{{4000, "staff"}}},
	}
	if me == 0 {
		users = append(users, User{UID: 8, GID: 8, Name: "bob", Home: "/home/bob"})
	}
	for _, u := range users {
		if err := ensureUser(root, u); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "home/alice")); err != nil {
		t.Error(err)
	}
	if g := read("group"); strings.Count(g, "staff:x:4000:") != 1 {
		t.Errorf("group:\n%s", g)
	}
	if me == 0 && !strings.Contains(read("passwd"), "bob-8:x:8:8::/home/bob:/bin/sh\n") {
		t.Errorf("a taken name:\n%s", read("passwd"))
	}
	if err := ensureUser(root, User{UID: 9, Name: "a:b"}); err == nil {
		t.Error("a name with a colon was accepted")
	}
}

func TestInputBufferIsBounded(t *testing.T) {
	b := newInputBuffer(4, &notifier{})
	if b.offer(0, []byte("abcdef"), true) {
		t.Error("more than the limit was taken")
	}
	if next, closed := b.state(); next != 4 || closed {
		t.Errorf("next %d, closed %v", next, closed)
	}
	b.consumed(3)
	if !b.offer(0, []byte("abcdef"), true) {
		t.Error("the rest was refused")
	}
	if p, eof := b.peek(10); string(p) != "def" || !eof {
		t.Errorf("%q, %v", p, eof)
	}
}
