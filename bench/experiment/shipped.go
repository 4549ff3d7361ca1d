package experiment

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

//go:embed shipped/*.yaml
var shipped embed.FS

// Shipped are the experiments that come with vft, by name in order.
func Shipped() ([]Experiment, error) {
	files, err := fs.Glob(shipped, "shipped/*.yaml")
	if err != nil {
		return nil, err
	}
	var out []Experiment
	for _, f := range files {
		text, err := ShippedText(strings.TrimSuffix(path.Base(f), ".yaml"))
		if err != nil {
			return nil, err
		}
		x, err := Parse(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		out = append(out, x)
	}
	return out, nil
}

// ShippedText is the YAML of an experiment that comes with vft. An error wraps
// fs.ErrNotExist when there is none of that name.
func ShippedText(name string) ([]byte, error) {
	if !nameForm.MatchString(name) {
		return nil, fmt.Errorf("experiment %q: %w", name, fs.ErrNotExist)
	}
	return shipped.ReadFile("shipped/" + name + ".yaml")
}
