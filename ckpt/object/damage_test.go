package object

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/mpirun-vft/vft/ckpt/internal/fsys/faultfs"
)

// tiny is as few bytes as there can be of every kind of object, compressed and
// not.
func tiny() []sample {
	words := newSample(KindPage, bytes.Repeat([]byte("compressible by"), 300)[:PageSize])
	ones := newSample(KindPage, bytes.Repeat([]byte{1}, PageSize))
	return []sample{words, ones, incompressible(KindNode, 1, 48), incompressible(KindNode, 2, 16), incompressible(KindData, 3, 33)}
}

// onePack returns a file system with a store of one pack, and the pack's path.
func onePack(t testing.TB, opt Options, all []sample) (*faultfs.FS, string) {
	t.Helper()
	m := newFS(t)
	opt.FS = m
	s := open(t, testDir, opt)
	mustPut(t, s, all)
	closeStore(t, s)
	files := m.Files(testDir)
	if len(files) != 1 {
		t.Fatalf("%d files: %q", len(files), files)
	}
	return m, files[0]
}

// readAll reads everything and reports how much was damaged or missing. Wrong
// data are an error.
func readAll(s *Store, all []sample) (lost int, err error) {
	for _, x := range all {
		switch err := checkOne(s, x); {
		case errors.Is(err, ErrCorrupt), errors.Is(err, ErrNotFound):
			lost++
			if s.Has(x.id) {
				return lost, fmt.Errorf("%v is lost, but Has says that it is there", x.id)
			}
		case err != nil:
			return lost, err
		}
	}
	return lost, nil
}

// damaged checks what damage may do to an open store, and repairs it.
func damaged(s *Store, all []sample) error {
	lost, err := readAll(s, all)
	if err != nil {
		return err
	}
	reports := 0
	if _, err := s.Verify(context.Background(), func(c *CorruptError) {
		reports++
		if c.Pack == (PackName{}) || !strings.Contains(c.Error(), c.Pack.String()) {
			err = fmt.Errorf("report without a pack: %w", c)
		}
	}); err != nil {
		return err
	}
	if err != nil {
		return err
	}
	if reports == 0 {
		return fmt.Errorf("not found by Verify; %d objects were lost", lost)
	}
	// Adding everything again repairs, and a collection removes what is damaged.
	if err := errors.Join(put(s, all), check(s, all)); err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	if _, err := s.Collect(context.Background(), marks(all)); err != nil {
		return err
	}
	if err := consistent(s, all); err != nil {
		return fmt.Errorf("after the repair: %w", err)
	}
	return nil
}

// TestEveryFlip flips a bit in every byte of a pack, before and after the store
// has been opened.
func TestEveryFlip(t *testing.T) {
	variants(t, func(t *testing.T, opt Options) {
		all := tiny()
		base, path := onePack(t, opt, all)
		for i := 0; i < len(base.Bytes(path)); i += faultfs.Step {
			for _, when := range []string{"before", "after"} {
				m := base.AfterCrash(faultfs.All())
				opt.FS = m
				flip := func() { m.Flip(path, int64(i)*8+int64(i%8)) }
				if when == "before" {
					flip()
				}
				s, err := Open(testDir, opt)
				if err != nil {
					t.Fatalf("byte %d: the store does not open: %v", i, err)
				}
				if when == "after" {
					flip()
				}
				if err := damaged(s, all); err != nil {
					t.Fatalf("byte %d, flipped %s opening: %v", i, when, err)
				}
				closeStore(t, s)
			}
		}
	})
}

func TestEveryTruncation(t *testing.T) {
	all := tiny()
	base, path := onePack(t, smallPacks(nil), all)
	whole := base.Bytes(path)
	for n := range len(whole) + 2 {
		if n == len(whole) {
			continue
		}
		m := base.AfterCrash(faultfs.All())
		m.Edit(path, func(b []byte) []byte { return append(b, 'x')[:min(n, len(b)+1)] })
		s := open(t, testDir, smallPacks(m))
		if len(s.Unreadable()) != 1 {
			t.Fatalf("%d of %d bytes: the pack can be read", n, len(whole))
		}
		if err := damaged(s, all); err != nil {
			t.Fatalf("%d of %d bytes: %v", n, len(whole), err)
		}
		closeStore(t, s)
	}
}

// TestDamageInLargeExtent: one damaged page of an extent that is stored raw does
// not cost its neighbours; neither does one that is read wrongly once.
func TestDamageInLargeExtent(t *testing.T) {
	var all []sample
	for n := range uint64(32) {
		all = append(all, incompressible(KindPage, n, PageSize))
	}
	m, path := onePack(t, smallPacks(nil), all)
	m.Flip(path, int64(headerSize+5*PageSize+7)*8)
	s := open(t, testDir, smallPacks(m))
	var reports []*CorruptError
	if _, err := s.Verify(t.Context(), func(c *CorruptError) { reports = append(reports, c) }); err != nil {
		t.Fatal(err)
	}
	if len(reports) != 1 || reports[0].ID != all[5].id || reports[0].Extent != 0 {
		t.Errorf("reports: %v", reports)
	}
	lost, err := readAll(s, all)
	if err != nil || lost != 1 {
		t.Errorf("%d pages lost, %v", lost, err)
	}
	// It is live and there is no other copy: its pack stays.
	for range 2 {
		if c := mustCollect(t, s, all); c.Missing != 1 || c.Deleted != 0 {
			t.Errorf("collection of a damaged pack: %+v", c)
		}
	}
	if len(m.Files(testDir+"/packs")) != 2 {
		t.Errorf("files: %q", m.Files(testDir))
	}
	b := s.NewBatch(t.Context())
	defer b.Close()
	if b.Keep(all[5].id) {
		t.Error("a damaged object is kept")
	}
	b.Close()
	mustPut(t, s, all[5:6])
	if c := mustCollect(t, s, all); c.Missing != 0 || c.Deleted != 1 {
		t.Errorf("collection after the repair: %+v", c)
	}
	if err := consistent(s, all); err != nil {
		t.Error(err)
	}
}

// TestOtherCopyIsUsed: of two copies one is damaged, whichever is found first.
func TestOtherCopyIsUsed(t *testing.T) {
	all := tiny()
	a, path := onePack(t, smallPacks(nil), all)
	b, other := onePack(t, smallPacks(nil), all)
	for _, bad := range []string{path, other} {
		m := a.AfterCrash(faultfs.All())
		if err := m.MakeRoot(filepath.Dir(other)); err != nil {
			t.Fatal(err)
		}
		f, err := m.Create(other)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(b.Bytes(other)); err != nil {
			t.Fatal(err)
		}
		m.Flip(bad, int64(headerSize+3)*8)
		s := open(t, testDir, smallPacks(m))
		if lost, err := readAll(s, all); lost > 0 || err != nil {
			t.Errorf("%d lost, %v", lost, err)
		}
		mustCollect(t, s, all)
		if err := consistent(s, all); err != nil {
			t.Error(err)
		}
		closeStore(t, s)
	}
}

func TestReadErrors(t *testing.T) {
	all := tiny()
	m, path := onePack(t, smallPacks(nil), all)
	s := open(t, testDir, smallPacks(m))
	only := func(kind string, err error) {
		m.Inject(func(c faultfs.Call) error {
			if c.Kind == kind && c.Path == path {
				return err
			}
			return nil
		})
	}
	// Not being able to open a file says nothing about what is in it.
	only("open", syscall.EMFILE)
	if _, err := s.Get(t.Context(), all[0].id, nil); !errors.Is(err, syscall.EMFILE) || errors.Is(err, ErrCorrupt) {
		t.Errorf("too many files: %v", err)
	}
	only("read", syscall.EIO)
	_, err := s.Get(t.Context(), all[0].id, nil)
	var corrupt *CorruptError
	if !errors.As(err, &corrupt) || corrupt.ID != all[0].id || corrupt.Extent < 0 || !errors.Is(err, syscall.EIO) {
		t.Errorf("read error: %v", err)
	}
	m.Inject(nil)
	if lost, err := readAll(s, all); lost != 1 || err != nil {
		t.Errorf("%d lost, %v", lost, err)
	}
	if err := m.Remove(path); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	s = open(t, testDir, smallPacks(m))
	mustPut(t, s, all)
	path = m.Files(testDir)[0]
	if err := m.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := damaged(s, all); err != nil {
		t.Errorf("missing file: %v", err)
	}
}

func TestVersion(t *testing.T) {
	base, path := onePack(t, smallPacks(nil), tiny())
	end := len(base.Bytes(path)) - 1
	set := func(b []byte, at ...int) []byte {
		for _, i := range at {
			b[i] = '3'
		}
		return b
	}
	m := base.AfterCrash(faultfs.All())
	m.Edit(path, func(b []byte) []byte { return set(b, len(magic)-1, end) })
	if _, err := Open(testDir, smallPacks(m)); !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "vftpack3") {
		t.Errorf("pack of another version: %v", err)
	}
	// One of the two alone is damage, and does not keep the store from opening.
	for _, at := range []int{len(magic) - 1, end} {
		m := base.AfterCrash(faultfs.All())
		m.Edit(path, func(b []byte) []byte { return set(b, at) })
		s := open(t, testDir, smallPacks(m))
		if err := damaged(s, tiny()); err != nil {
			t.Error(err)
		}
	}
}

// bytesReader is a pack in memory.
func bytesReader(b []byte) (io.ReaderAt, int64) { return bytes.NewReader(b), int64(len(b)) }

// rebuild returns a pack with what change makes of its index and footer, with
// digests that agree.
func rebuild(pack []byte, change func(*index, *footer)) []byte {
	f, err := decodeFooter(pack[len(pack)-footerSize:], int64(len(pack)))
	if err != nil {
		panic(err)
	}
	at := int(f.indexOffset(int64(len(pack))))
	x, err := decodeIndex(pack[at:at+int(f.index)], int64(at), 0)
	if err != nil {
		panic(err)
	}
	change(x, f)
	meta := x.encode()
	if f.index == uint32(len(pack)-at-footerSize) {
		f.index = uint32(len(meta))
	}
	f.digest = digest(meta)
	return slices.Concat(pack[:at], meta, f.encode())
}

// TestContradictions: packs whose digests are right, and that lie.
func TestContradictions(t *testing.T) {
	all := tiny()
	m, path := onePack(t, smallPacks(nil), all)
	pack := m.Bytes(path)
	if _, err := ReadPackIndex(bytesReader(rebuild(pack, func(*index, *footer) {}))); err != nil {
		t.Fatalf("unchanged: %v", err)
	}
	for name, change := range map[string]func(*index, *footer){
		"longer extent":       func(x *index, _ *footer) { x.extents[0].stored++ },
		"huge extent":         func(x *index, _ *footer) { x.extents[0].stored = 1 << 31; x.extents[0].raw = 1 << 31 },
		"empty extent":        func(x *index, _ *footer) { x.extents[0].stored = 0 },
		"larger than raw":     func(x *index, _ *footer) { x.extents[0].raw = x.extents[0].stored - 1 },
		"unknown kind":        func(x *index, _ *footer) { x.extents[1].kind = 9 },
		"unknown codec":       func(x *index, _ *footer) { x.extents[1].codec = 7 },
		"no objects":          func(x *index, _ *footer) { x.extents[1].objects = 0 },
		"more objects":        func(x *index, _ *footer) { x.extents[1].objects++ },
		"many objects":        func(x *index, _ *footer) { x.extents[1].objects = 257 },
		"pages of other size": func(x *index, _ *footer) { x.extents[0].raw++ },
		"missing id":          func(x *index, _ *footer) { x.ids = x.ids[1:] },
		"zero id":             func(x *index, _ *footer) { x.ids[2] = ID{} },
		"missing length":      func(x *index, _ *footer) { x.lengths = x.lengths[1:] },
		"zero length":         func(x *index, _ *footer) { x.lengths[0], x.lengths[1] = 0, x.lengths[0]+x.lengths[1] },
		"overflowing lengths": func(x *index, _ *footer) { x.lengths[0], x.lengths[1] = 1<<32-1, x.lengths[0]+x.lengths[1]+1 },
		"longer index":        func(_ *index, f *footer) { f.index++ },
		"huge index":          func(_ *index, f *footer) { f.index = 1<<32 - 1 },
		"envelope":            func(_ *index, f *footer) { f.envelope = 10 },
		"encrypted":           func(_ *index, f *footer) { f.encrypted = true },
	} {
		_, err := ReadPackIndex(bytesReader(rebuild(pack, change)))
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Objects that are not what the index says.
	x, err := ReadPackIndex(bytesReader(rebuild(pack, func(x *index, _ *footer) { x.ids[1] = ID{1} })))
	if err != nil {
		t.Fatal(err)
	}
	r, _ := bytesReader(pack)
	var corrupt *CorruptError
	if _, err := x.ReadExtent(r, 0); !errors.As(err, &corrupt) || corrupt.ID != (ID{1}) || corrupt.Pack != x.Name() {
		t.Errorf("wrong id: %v", err)
	}
}

// TestHostileLengthsCostNothing: numbers of entries that cannot be are refused
// before memory is taken for them.
func TestHostileLengthsCostNothing(t *testing.T) {
	b := binary.LittleEndian.AppendUint32(nil, maxExtents)
	if allocated := testing.AllocsPerRun(10, func() { _, _ = decodeIndex(b, 0, 0) }); allocated > 10 {
		t.Errorf("%v allocations", allocated)
	}
	e := Extent{Kind: KindData, IDs: []ID{{1}}, Lengths: []uint32{1 << 20}, Length: 1 << 30, Stored: []byte("x"), Compressed: true}
	if _, err := e.Decode(nil); err == nil {
		t.Error("an extent of a gigabyte was accepted")
	}
}

func TestEncryption(t *testing.T) {
	id, err := GenerateIdentity()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "identity")
	if err := os.WriteFile(file, []byte("# a comment\n"+id.Text()), 0o600); err != nil {
		t.Fatal(err)
	}
	loaded, err := LoadIdentity(file)
	if err != nil || loaded.String() != id.String() {
		t.Fatalf("%v, %v", loaded, err)
	}
	other, err := GenerateIdentity()
	if err != nil {
		t.Fatal(err)
	}
	all := samples(0, 100)
	m := newFS(t)
	opt := smallPacks(m)
	opt.Identity = id
	s := open(t, testDir, opt)
	mustPut(t, s, all)
	closeStore(t, s)

	for _, path := range m.Files(testDir) {
		b := m.Bytes(path)
		for _, x := range all {
			if bytes.Contains(b, x.id[:]) || bytes.Contains(b, x.data[:min(16, len(x.data))]) && len(x.data) > 15 {
				t.Fatalf("%s holds %v in the clear", path, x.id)
			}
		}
		if _, err := ReadPackIndex(bytesReader(b)); !errors.Is(err, ErrIdentity) || !strings.Contains(err.Error(), "--ckpt-identity") {
			t.Errorf("without an identity: %v", err)
		}
		if x, err := ReadPackIndex(bytes.NewReader(b), int64(len(b)), nil, other, loaded); err != nil || x.Len() == 0 {
			t.Errorf("with several identities: %v", err)
		}
	}
	for name, wrong := range map[string]*Identity{"none": nil, "another": other} {
		opt.Identity = wrong
		if _, err := Open(testDir, opt); !errors.Is(err, ErrIdentity) {
			t.Errorf("identity: %s: %v", name, err)
		}
	}
	// A file with a new key first and the old one behind it.
	if err := os.WriteFile(file, []byte(other.Text()+id.Text()), 0o600); err != nil {
		t.Fatal(err)
	}
	if opt.Identity, err = LoadIdentity(file); err != nil {
		t.Fatal(err)
	}
	s = open(t, testDir, opt)
	mustCheck(t, s, all)
	mustPut(t, s, pages(500, 600))
	mustCollect(t, s, every(4, all))
	mustCheck(t, s, every(4, all))
	closeStore(t, s)
	opt.Identity = other // all of the rest has been written with the new key
	s = open(t, testDir, opt)
	mustCheck(t, s, every(4, all))
}

func TestPlainPacksStayReadableWithIdentity(t *testing.T) {
	id, err := GenerateIdentity()
	if err != nil {
		t.Fatal(err)
	}
	all := tiny()
	m, _ := onePack(t, smallPacks(nil), all)
	opt := smallPacks(m)
	opt.Identity = id
	s := open(t, testDir, opt)
	mustCheck(t, s, all)
}

func TestIdentityFiles(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"empty": "", "garbage": "hello\n", "half": "AGE-SECRET-KEY-1QQ\n", "public": "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p\n",
	} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadIdentity(file); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := LoadIdentity(filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	id, err := GenerateIdentity()
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := id.Encrypt([]byte("manifest"))
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := id.Decrypt(sealed, 8); err != nil || string(plain) != "manifest" {
		t.Errorf("%q, %v", plain, err)
	}
	if _, err := id.Decrypt(sealed, 7); err == nil {
		t.Error("more than the limit was decrypted")
	}
	sealed[len(sealed)-1] ^= 1
	if _, err := id.Decrypt(sealed, 8); err == nil || errors.Is(err, ErrIdentity) {
		t.Errorf("damaged file: %v", err)
	}
}
