package agent

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// User is who a program runs as.
type User struct {
	UID, GID uint32
	Name     string
	Home     string
	Groups   []Group
}

// Group is a supplementary group.
type Group struct {
	GID  uint32
	Name string
}

// ensureUser makes the entries in root's etc/passwd and etc/group and the home
// directory that u needs and that are missing.
func ensureUser(root string, u User) error {
	name := u.Name
	if name == "" {
		name = "u" + strconv.FormatUint(uint64(u.UID), 10)
	}
	home := u.Home
	if home == "" {
		home = "/home/" + name
		if u.UID == 0 {
			home = "/root"
		}
	}
	if strings.ContainsAny(name+home, ":\n") {
		return fmt.Errorf("user %q with home %q: a colon or newline cannot stand in /etc/passwd", name, home)
	}
	err := addEntry(filepath.Join(root, "etc/passwd"), name, u.UID,
		fmt.Sprintf("%s:x:%d:%d::%s:/bin/sh", name, u.UID, u.GID, home))
	if err != nil {
		return err
	}
	groups := append([]Group{{GID: u.GID, Name: name}}, u.Groups...)
	for _, g := range groups {
		gname := g.Name
		if gname == "" {
			gname = "g" + strconv.FormatUint(uint64(g.GID), 10)
		}
		if strings.ContainsAny(gname, ":\n") {
			return fmt.Errorf("group %q: a colon or newline cannot stand in /etc/group", gname)
		}
		err := addEntry(filepath.Join(root, "etc/group"), gname, g.GID, fmt.Sprintf("%s:x:%d:", gname, g.GID))
		if err != nil {
			return err
		}
	}
	dir := filepath.Join(root, home)
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // directories of a system are for all
		return fmt.Errorf("make the home directory of %s: %w", name, err)
	}
	if err := os.Chown(dir, int(u.UID), int(u.GID)); err != nil {
		return fmt.Errorf("make the home directory of %s: %w", name, err)
	}
	return nil
}

// addEntry appends line to a passwd-like file unless its id is there. A name
// that another id has is left to the other: the id is what counts.
func addEntry(file, name string, id uint32, line string) error {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644) //nolint:gosec // world-readable by nature
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	for s := bufio.NewScanner(f); s.Scan(); {
		field := strings.Split(s.Text(), ":")
		if len(field) > 2 && field[2] == strconv.FormatUint(uint64(id), 10) {
			return nil
		}
		if field[0] == name {
			line = fmt.Sprintf("%s-%d%s", name, id, strings.TrimPrefix(line, name))
		}
	}
	if _, err := f.WriteString(line + "\n"); err != nil {
		return fmt.Errorf("add %s to %s: %w", name, file, err)
	}
	return nil
}
