package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// aptSources writes the parts of the host's apt sources below dir that belong
// to the Debian release suite, for mmdebstrap, and returns the files' names.
// Other archives that the host uses have nothing for the guest.
func aptSources(dir, suite, work string) ([]string, error) {
	files := []string{filepath.Join(dir, "sources.list")}
	for _, pattern := range []string{"*.list", "*.sources"} {
		more, err := filepath.Glob(filepath.Join(dir, "sources.list.d", pattern))
		if err != nil {
			return nil, err
		}
		files = append(files, more...)
	}
	var list, stanzas []string
	for _, file := range files {
		b, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the host's apt sources: %w", err)
		}
		if strings.HasSuffix(file, ".sources") {
			stanzas = append(stanzas, sourcesStanzas(string(b), suite)...)
		} else {
			list = append(list, sourcesLines(string(b), suite)...)
		}
	}
	var out []string
	for name, text := range map[string]string{
		"apt.list":    strings.Join(list, "\n"),
		"apt.sources": strings.Join(stanzas, "\n\n"),
	} {
		if text == "" {
			continue
		}
		path := filepath.Join(work, name)
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil { //nolint:gosec // sources are public
			return nil, err
		}
		out = append(out, path)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s names no archive of Debian %s: add one to sources.list and run apt-get update", dir, suite)
	}
	slices.Sort(out)
	return out, nil
}

func wantedSuite(s, suite string) bool {
	return s == suite || s == suite+"-updates" || s == suite+"-security"
}

// sourcesLines picks lines of the one-line format.
func sourcesLines(text, suite string) []string {
	var out []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		f := strings.Fields(line)
		if len(f) < 4 || f[0] != "deb" {
			continue
		}
		if strings.HasPrefix(f[1], "[") {
			end := slices.IndexFunc(f, func(s string) bool { return strings.HasSuffix(s, "]") })
			if end < 0 || len(f) < end+4 {
				continue
			}
			f = append([]string{"deb"}, f[end+1:]...)
		}
		if wantedSuite(f[2], suite) && slices.Contains(f[3:], "main") {
			out = append(out, line)
		}
	}
	return out
}

// sourcesStanzas picks stanzas of the deb822 format.
func sourcesStanzas(text, suite string) []string {
	var out []string
	for stanza := range strings.SplitSeq(text, "\n\n") {
		fields := map[string][]string{}
		for line := range strings.Lines(stanza) {
			if key, value, ok := strings.Cut(line, ":"); ok && !strings.HasPrefix(line, "#") {
				fields[strings.ToLower(strings.TrimSpace(key))] = strings.Fields(value)
			}
		}
		if slices.Contains(fields["types"], "deb") && slices.Contains(fields["components"], "main") &&
			!slices.Equal(fields["enabled"], []string{"no"}) &&
			slices.ContainsFunc(fields["suites"], func(s string) bool { return wantedSuite(s, suite) }) {
			out = append(out, strings.TrimSpace(stanza))
		}
	}
	return out
}

// aptOptions returns the host's apt settings that decide how archives are
// reached: proxies, time-outs and checks.
func aptOptions(ctx context.Context) ([]string, error) {
	out, err := run(ctx, "", "apt-config", "dump")
	if err != nil {
		return nil, fmt.Errorf("read the host's apt settings: %w", err)
	}
	return acquireOptions(out), nil
}

func acquireOptions(dump string) []string {
	var out []string
	for line := range strings.Lines(dump) {
		line = strings.TrimSpace(line)
		for _, p := range []string{"Acquire::http::", "Acquire::https::", "Acquire::Check-", "Acquire::Retries", "Acquire::ForceIPv"} {
			if strings.HasPrefix(line, p) && !strings.HasSuffix(line, ` "";`) && !strings.Contains(line, ":: ") {
				out = append(out, strings.TrimSuffix(line, ";"))
			}
		}
	}
	return out
}
