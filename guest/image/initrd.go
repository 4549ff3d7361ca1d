package image

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// writeInitrd writes the initial file system as an uncompressed cpio archive
// ("newc"): reading it costs an emulated processor less than unpacking it.
func writeInitrd(path, agent string, libraries []string, modules string, names []string) error {
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(out, 1<<20)
	c := &cpioWriter{w: w}
	c.dir("dev")
	c.dir("proc")
	c.dir("sys")
	c.dir("modules")
	c.device("dev/console", 5, 1)
	c.device("dev/null", 1, 3)
	c.bytes("modules/list", []byte(strings.Join(names, "\n")+"\n"))
	for _, n := range names {
		c.file("modules/"+n, filepath.Join(modules, n), 0o644)
	}
	c.file("vft-guest", agent, 0o755)
	c.symlink("init", "vft-guest")
	c.dir("lib")
	for _, l := range libraries {
		c.file("lib/"+filepath.Base(l), l, 0o755)
	}
	c.end()
	return errors.Join(c.err, w.Flush(), out.Close())
}

const (
	cpioDir     = 0o040000
	cpioFile    = 0o100000
	cpioSymlink = 0o120000
	cpioDevice  = 0o020000
)

// cpioWriter writes the "new ASCII" cpio format (cpio(5)). Its output depends
// on names and contents alone.
type cpioWriter struct {
	w   io.Writer
	n   int64
	ino int
	err error
}

func (c *cpioWriter) write(b []byte) {
	if c.err == nil {
		_, c.err = c.w.Write(b)
		c.n += int64(len(b))
	}
}

func (c *cpioWriter) pad(to int64) {
	if rest := c.n % to; rest != 0 {
		c.write(make([]byte, to-rest))
	}
}

func (c *cpioWriter) header(name string, mode int, size int64, major, minor int) {
	c.ino++
	h := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		c.ino, mode, 0, 0, 1, 0, size, 0, 0, major, minor, len(name)+1, 0, name)
	c.write([]byte(h))
	c.pad(4)
}

func (c *cpioWriter) dir(name string) { c.header(name, cpioDir|0o755, 0, 0, 0) }

func (c *cpioWriter) device(name string, major, minor int) {
	c.header(name, cpioDevice|0o600, 0, major, minor)
}

func (c *cpioWriter) bytes(name string, b []byte) {
	c.header(name, cpioFile|0o644, int64(len(b)), 0, 0)
	c.write(b)
	c.pad(4)
}

func (c *cpioWriter) symlink(name, target string) {
	c.header(name, cpioSymlink|0o777, int64(len(target)), 0, 0)
	c.write([]byte(target))
	c.pad(4)
}

func (c *cpioWriter) file(name, from string, mode int) {
	if c.err != nil {
		return
	}
	b, err := os.ReadFile(from)
	if err != nil {
		c.err = err
		return
	}
	c.header(name, cpioFile|mode, int64(len(b)), 0, 0)
	c.write(b)
	c.pad(4)
}

func (c *cpioWriter) end() {
	c.header("TRAILER!!!", 0, 0, 0, 0)
	c.pad(512)
}
