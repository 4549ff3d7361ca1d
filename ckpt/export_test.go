package ckpt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/mpirun-vft/vft/ckpt/export"
	"github.com/mpirun-vft/vft/ckpt/internal/fsys/faultfs"
	"github.com/mpirun-vft/vft/ckpt/object"
)

// group is an epoch of two guests, whose memory has much in common with that of
// the epoch before, and a staged archive.
type group struct {
	parts   []sample
	infos   []Info
	archive []byte
}

func putGroup(t testing.TB, s *Store) group {
	t.Helper()
	g := group{archive: randomBytes(5, 3000)}
	for epoch := uint64(1); epoch <= 2; epoch++ {
		g.parts, g.infos = nil, nil
		for guest := range 2 {
			p := newSample(epoch, guest, 200)
			g.parts = append(g.parts, p)
			g.infos = append(g.infos, p.mustPut(t, s))
		}
	}
	if _, err := s.Blobs().Put(t.Context(), Digest(g.archive), int64(len(g.archive)), bytes.NewReader(g.archive)); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g group) contents() Contents {
	c := Contents{Parts: map[PartID]string{}, Blobs: map[string]int64{Digest(g.archive): int64(len(g.archive))}}
	for _, i := range g.infos {
		c.Parts[i.ID] = i.Manifest
	}
	return c
}

func (g group) export(t testing.TB, s *Store, from Source) []byte {
	t.Helper()
	var parts []Exported
	for _, i := range g.infos {
		parts = append(parts, Exported{ID: i.ID, Manifest: i.Manifest, From: from})
	}
	var b bytes.Buffer
	n, err := s.Export(t.Context(), &b, []byte("about"), parts, []string{Digest(g.archive)})
	if err != nil {
		t.Fatal(err)
	}
	if n != int64(b.Len()) {
		t.Errorf("%d bytes, says %d", b.Len(), n)
	}
	return b.Bytes()
}

// admit takes what the group has.
func (g group) admit(job []byte) (Contents, error) {
	if string(job) != "about" {
		return Contents{}, fmt.Errorf("about %q", job)
	}
	return g.contents(), nil
}

func (g group) check(t testing.TB, s *Store) {
	t.Helper()
	for n, p := range g.parts {
		p.mustCheck(t, s, g.infos[n].Manifest)
	}
	r, err := s.Blobs().Open(t.Context(), Digest(g.archive))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, g.archive) {
		t.Errorf("the archive differs: %v", err)
	}
}

// nothing fails when something of a file that was refused is left, but for
// objects that nothing needs.
func nothing(t testing.TB, m *faultfs.FS, s *Store) {
	t.Helper()
	if left := append(m.Files(testDir+"/parts"), m.Files(testDir+"/blobs")...); len(left) > 0 {
		t.Fatalf("left: %v", left)
	}
	if _, err := s.Collect(context.Background()); err != nil {
		t.Fatal(err)
	}
	if left := packFiles(m); len(left) > 0 {
		t.Errorf("packs are left: %v", left)
	}
}

func TestExportAndImport(t *testing.T) {
	from := openMem(t, faultfs.New())
	g := putGroup(t, from)
	file := g.export(t, from, nil)
	own := int64(0)
	for _, i := range g.infos {
		own += i.Size
	}
	if n := int64(len(file)); n > own-40*object.PageSize || n < own/2 {
		t.Errorf("%d bytes for parts of %d that share every fourth page", n, own)
	}
	m := faultfs.New()
	to := openMem(t, m)
	for range 2 { // may be repeated
		infos, err := to.Import(t.Context(), bytes.NewReader(file), g.admit, func() {})
		if err != nil {
			t.Fatal(err)
		}
		if len(infos) != 2 || infos[0] != g.infos[0] || infos[1] != g.infos[1] {
			t.Errorf("%+v, want %+v", infos, g.infos)
		}
		g.check(t, to)
	}
	noTemp(t, m)
	if _, err := to.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, i := range g.infos {
		if _, _, err := to.Verify(t.Context(), i.ID, i.Manifest, nil); err != nil {
			t.Error(err)
		}
	}
	// Into a store that has the epoch before: only what is new is added.
	with := openMem(t, faultfs.New())
	newSample(1, 0, 200).mustPut(t, with)
	before, err := with.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := with.Import(t.Context(), bytes.NewReader(file), g.admit, func() {}); err != nil {
		t.Fatal(err)
	}
	after, err := with.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	g.check(t, with)
	alone, err := to.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after.Objects-before.Objects >= alone.Objects {
		t.Errorf("%d objects were added to %d, alone it is %d", after.Objects-before.Objects, before.Objects, alone.Objects)
	}
	g.check(t, openedAgain(t, m))
}

// openedAgain is the store as the next process finds it after a power cut.
func openedAgain(t testing.TB, m *faultfs.FS) *Store {
	return openMem(t, m.AfterCrash(faultfs.Survival{}))
}

// A node exports what other nodes have, and what is damaged in its own store.
func TestExportFromElsewhere(t *testing.T) {
	other := openMem(t, faultfs.New())
	g := putGroup(t, other)
	want := g.export(t, other, nil)
	for name, prepare := range map[string]func(*faultfs.FS, *Store){
		"nothing here": func(*faultfs.FS, *Store) {},
		"damaged here": func(m *faultfs.FS, s *Store) {
			for _, i := range g.infos {
				if _, _, err := s.Fetch(t.Context(), i.ID, i.Manifest, other); err != nil {
					t.Fatal(err)
				}
			}
			damagePacks(m)
		},
	} {
		m := faultfs.New()
		s := openMem(t, m)
		prepare(m, s)
		if _, err := s.Blobs().Put(t.Context(), Digest(g.archive), int64(len(g.archive)), bytes.NewReader(g.archive)); err != nil {
			t.Fatal(err)
		}
		file := g.export(t, s, other)
		to := openMem(t, faultfs.New())
		if _, err := to.Import(t.Context(), bytes.NewReader(file), g.admit, func() {}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		g.check(t, to)
		if len(file) > len(want)*3/2 {
			t.Errorf("%s: %d bytes, from the other store %d", name, len(file), len(want))
		}
		// What a source gives is not believed.
		bad := &peer{Store: other, spoil: func(e *object.Extent) { e.Stored[0] ^= 1 }}
		_, err := s.Export(t.Context(), io.Discard, nil, []Exported{{ID: g.infos[0].ID, Manifest: g.infos[0].Manifest, From: bad}}, nil)
		if !errors.Is(err, ErrTransfer) {
			t.Errorf("%s: %v", name, err)
		}
		_, err = s.Export(t.Context(), io.Discard, nil, []Exported{{ID: g.infos[0].ID, Manifest: g.infos[0].Manifest}}, nil)
		if !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s, without a source: %v", name, err)
		}
	}
}

// A file that is cut off or turned anywhere is refused and leaves nothing.
func TestDamagedFiles(t *testing.T) {
	from := openMem(t, faultfs.New())
	g := putGroup(t, from)
	file := g.export(t, from, nil)
	m := faultfs.New()
	s := openMem(t, m)
	for i := range 10 {
		at := len("vft export 1\n") + i*(len(file)-20)/10
		turned := bytes.Clone(file)
		turned[at] ^= 4
		for name, bad := range map[string][]byte{"cut": file[:at], "turned": turned} {
			_, err := s.Import(t.Context(), bytes.NewReader(bad), g.admit, func() {})
			var d *export.DamageError
			if !errors.As(err, &d) || d.Offset > int64(at) || d.Record == 0 {
				t.Fatalf("%s at %d: %v", name, at, err)
			}
			nothing(t, m, s)
		}
	}
	for name, x := range map[string]struct {
		spoil func(w *export.Writer, f *export.Reader, rec export.Record) error
		want  string
	}{
		"an object is missing": {func(w *export.Writer, f *export.Reader, rec export.Record) error {
			e, err := f.Extent(rec)
			if err != nil || e.Kind == object.KindPage {
				return err
			}
			return w.Extent(e)
		}, "it does not have all that a part needs"},
		"an object is another": {func(w *export.Writer, f *export.Reader, rec export.Record) error {
			e, err := f.Extent(rec)
			if err != nil {
				return err
			}
			e.IDs[0][3] ^= 1
			return w.Extent(e)
		}, "an object is not what its id says"},
	} {
		_, err := s.Import(t.Context(), bytes.NewReader(rewrite(t, file, x.spoil)), g.admit, func() {})
		if !errors.Is(err, export.ErrDamaged) || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v", name, err)
		}
		nothing(t, m, s)
	}
	for name, change := range map[string]func(*Contents){
		"another manifest": func(c *Contents) { c.Parts[g.infos[0].ID] = Digest(nil) },
		"a part too many":  func(c *Contents) { c.Parts[PartID{Job: "bt-mz.1", Epoch: 2, Guest: 9}] = Digest(nil) },
		"a part too few":   func(c *Contents) { delete(c.Parts, g.infos[1].ID) },
		"another blob":     func(c *Contents) { c.Blobs = map[string]int64{Digest(nil): 0} },
		"a blob too many":  func(c *Contents) { c.Blobs[Digest(nil)] = 0 },
		"another size":     func(c *Contents) { c.Blobs[Digest(g.archive)]++ },
	} {
		_, err := s.Import(t.Context(), bytes.NewReader(file), func([]byte) (Contents, error) {
			c := g.contents()
			change(&c)
			return c, nil
		}, nil)
		if !errors.Is(err, export.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
		nothing(t, m, s)
	}
	refused := errors.New("not yours")
	if _, err := s.Import(t.Context(), bytes.NewReader(file), func([]byte) (Contents, error) { return Contents{}, refused }, nil); !errors.Is(err, refused) {
		t.Errorf("%v", err)
	}
	nothing(t, m, s)
}

// rewrite makes a file of which each extent goes through change, and whose
// digests are right.
func rewrite(t testing.TB, file []byte, change func(*export.Writer, *export.Reader, export.Record) error) []byte {
	t.Helper()
	var out bytes.Buffer
	w, f := export.NewWriter(&out), export.NewReader(bytes.NewReader(file))
	for {
		rec, err := f.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch rec.Type {
		case export.Job:
			err = w.Job(rec.Data)
		case export.Manifest:
			err = w.Manifest(rec.Data)
		case export.Extent:
			err = change(w, f, rec)
		case export.Blob:
			err = w.Blob(rec.Digest, rec.Size, f.Content())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.End(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// When one part cannot get its name, the others lose theirs.
func TestImportIsAllOrNothing(t *testing.T) {
	from := openMem(t, faultfs.New())
	g := putGroup(t, from)
	file := g.export(t, from, nil)
	m := faultfs.New()
	s := openMem(t, m)
	renamed := 0
	m.Inject(func(c faultfs.Call) error {
		if c.Kind == "rename" && strings.Contains(c.Path, "/parts/") {
			if renamed++; renamed == 2 {
				return syscall.EIO
			}
		}
		return nil
	})
	if _, err := s.Import(t.Context(), bytes.NewReader(file), g.admit, func() {}); !errors.Is(err, syscall.EIO) {
		t.Fatalf("%v after %d renames", err, renamed)
	}
	m.Inject(nil)
	if left := m.Files(testDir + "/parts"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	noTemp(t, m)
	if _, err := s.Import(t.Context(), bytes.NewReader(file), g.admit, func() {}); err != nil {
		t.Fatal(err)
	}
	g.check(t, s)

	// A part that was there before stays, and another one of its name is in the way.
	other := openMem(t, faultfs.New())
	p := g.parts[1]
	p.head = []byte("another head")
	info := p.mustPut(t, other)
	if _, err := other.Import(t.Context(), bytes.NewReader(file), g.admit, func() {}); !errors.Is(err, ErrConflict) {
		t.Errorf("%v", err)
	}
	p.mustCheck(t, other, info.Manifest)
	if _, err := other.Stat(t.Context(), g.infos[0].ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("half of the file was taken: %v", err)
	}
}

// FuzzImport: no file brings a store to its knees, or is taken for whole when
// what it has is not what it must be.
func FuzzImport(f *testing.F) {
	from := openMem(f, faultfs.New())
	p := newSample(1, 0, 3)
	p.tail = p.tail[:100]
	info := p.mustPut(f, from)
	var file bytes.Buffer
	if _, err := from.Export(context.Background(), &file, []byte("about"), []Exported{{ID: info.ID, Manifest: info.Manifest}}, nil); err != nil {
		f.Fatal(err)
	}
	f.Add(0, []byte{1})
	f.Add(file.Len()/2, []byte("changed"))
	s := openMem(f, faultfs.New())
	f.Fuzz(func(t *testing.T, at int, b []byte) {
		bad := bytes.Clone(file.Bytes())
		copy(bad[min(max(at, 0), len(bad)):], b)
		_, err := s.Import(t.Context(), bytes.NewReader(bad), func([]byte) (Contents, error) {
			return Contents{Parts: map[PartID]string{info.ID: info.Manifest}}, nil
		}, func() {})
		if same := bytes.Equal(bad, file.Bytes()); same != (err == nil) {
			t.Errorf("the same %v: %v", same, err)
		}
	})
}
