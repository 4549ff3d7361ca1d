// Package treetest unpacks trees of small text files for tests: recorded
// machines whose file names a module may not have (PCI addresses have colons).
//
// An archive is text. A line "-- NAME --" begins a file, which goes on to the
// next such line; "-- NAME/ --" is a directory, "-- NAME -> TARGET --" a
// symbolic link. What comes before the first is a comment.
package treetest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Unpack writes the archives into a new directory, later ones over earlier
// ones, and returns it.
func Unpack(t testing.TB, archives ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, a := range archives {
		data, err := os.ReadFile(a)
		if err != nil {
			t.Fatal(err)
		}
		Write(t, root, string(data))
	}
	return root
}

// Write writes an archive into a directory.
func Write(t testing.TB, root, archive string) {
	t.Helper()
	var name string
	var content strings.Builder
	flush := func() {
		if name != "" {
			write(t, root, name, content.String())
		}
		content.Reset()
	}
	for line := range strings.Lines(archive) {
		head, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "-- ")
		if head, closed := strings.CutSuffix(head, " --"); ok && closed {
			flush()
			name = head
			continue
		}
		content.WriteString(line)
	}
	flush()
}

func write(t testing.TB, root, name, content string) {
	t.Helper()
	name, target, link := strings.Cut(name, " -> ")
	path := filepath.Join(root, name)
	dir := filepath.Dir(path)
	if strings.HasSuffix(name, "/") {
		dir = path
	}
	err := os.MkdirAll(dir, 0o755) //nolint:gosec // test files
	switch {
	case err != nil || dir == path:
	case link:
		err = os.Symlink(target, path)
	default:
		err = os.WriteFile(path, []byte(content), 0o644) //nolint:gosec // test files
	}
	if err != nil {
		t.Fatal(err)
	}
}
