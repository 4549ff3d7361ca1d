package wrapper

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPrint(t *testing.T) {
	dir := t.TempDir()
	script := "#!/bin/sh\necho real mpirun was asked \"$@\"\n"
	if err := os.WriteFile(filepath.Join(dir, "mpirun"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path string
		cmd  Command
		want []string
	}{
		{dir, Command{Show: ShowVersion, ShowArgs: []string{"--version"}}, []string{"mpirun-vft 1.2\n", "real mpirun was asked --version"}},
		{dir, Command{Show: ShowHelp, ShowArgs: []string{"--help", "mapping"}}, []string{"--vft-help", "real mpirun was asked --help mapping"}},
		{"/does/not/exist", Command{Show: ShowVersion}, []string{"mpirun-vft 1.2\n", "No mpirun is installed here"}},
		{"/does/not/exist", Command{Show: ShowHelp}, []string{"Usage: mpirun-vft"}},
		{dir, Command{Show: ShowOwn}, []string{"--vft-interval TIME", "--vft-quiet\n"}},
	} {
		t.Setenv("PATH", tt.path)
		var out strings.Builder
		code := tt.cmd.Print(t.Context(), &out, "1.2")
		for _, w := range tt.want {
			if code != 0 || !strings.Contains(out.String(), w) {
				t.Errorf("%s: code %d, %q; want %q in it", tt.cmd.Show, code, out.String(), w)
			}
		}
	}
}
