package export

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/zeebo/blake3"

	"github.com/mpirun-vft/vft/ckpt/object"
)

func random(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// extents are a raw one of pages and a raw one of data.
func extents() []object.Extent {
	pages := object.Extent{Kind: object.KindPage}
	for i := range 3 {
		p := random(byte(i), object.PageSize)
		pages.IDs, pages.Stored = append(pages.IDs, object.Sum(object.KindPage, p)), append(pages.Stored, p...)
	}
	pages.Length = len(pages.Stored)
	d := random(9, 777)
	return []object.Extent{pages, {
		Kind: object.KindData, IDs: []object.ID{object.Sum(object.KindData, d)}, Lengths: []uint32{777}, Length: 777, Stored: d,
	}}
}

var (
	emptyID   = blake3.Sum256(nil)
	smallBlob = random(7, 100)
)

// sample is a file with everything that can be in one.
func sample(t testing.TB, blob []byte) []byte {
	t.Helper()
	digest := blake3.Sum256(blob)
	var b bytes.Buffer
	w := NewWriter(&b)
	require.NoError(t, w.Job([]byte("about the job")))
	require.NoError(t, w.Manifest([]byte(`{"version":2}`)))
	for _, e := range extents() {
		require.NoError(t, w.Extent(e))
	}
	require.NoError(t, w.Blob(hex.EncodeToString(emptyID[:]), 0, strings.NewReader("")))
	require.NoError(t, w.Blob(hex.EncodeToString(digest[:]), int64(len(blob)), bytes.NewReader(blob)))
	require.NoError(t, w.Manifest([]byte(`{"version":2,"guest":1}`)))
	require.NoError(t, w.End())
	assert.Equal(t, int64(b.Len()), w.Bytes())
	assert.ErrorContains(t, w.Manifest(nil), "has ended")
	return b.Bytes()
}

// walk reads a file to its end or the first error, looking at everything.
func walk(r io.Reader) (types string, err error) {
	f := NewReader(r)
	for {
		rec, err := f.Next()
		if errors.Is(err, io.EOF) {
			return types, nil
		}
		if err != nil {
			return types, err
		}
		types += string(rune(rec.Type))
		switch rec.Type {
		case Extent:
			e, err := f.Extent(rec)
			if err != nil {
				return types, err
			}
			if _, err := e.Decode(nil); err != nil {
				return types, f.Damage("an object", err)
			}
		case Blob:
			h := blake3.New()
			if n, err := io.Copy(h, f.Content()); err != nil || n != rec.Size {
				return types, errors.Join(err, errors.New("short"))
			}
			if hex.EncodeToString(h.Sum(nil)) != rec.Digest {
				return types, f.Damage("a blob", nil)
			}
		}
	}
}

func TestRoundTrip(t *testing.T) {
	file := sample(t, random(8, 2*maxData+5))
	for _, r := range []io.Reader{bytes.NewReader(file), iotest.OneByteReader(bytes.NewReader(file)), iotest.DataErrReader(bytes.NewReader(file))} {
		types, err := walk(r)
		require.NoError(t, err)
		assert.Equal(t, "JMEEBBM", types)
	}
	f := NewReader(bytes.NewReader(file)) // a blob that is not read is passed over
	var got []string
	for {
		rec, err := f.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		got = append(got, rec.Type.String())
		if rec.Type == Extent {
			e, err := f.Extent(rec)
			require.NoError(t, err)
			want := extents()
			assert.Equal(t, want[e.Kind/object.KindData], e)
		}
	}
	assert.Equal(t, "job manifest extent extent blob blob manifest", strings.Join(got, " "))
}

// No file that is not whole is taken for one, wherever it is cut or turned.
func TestDamage(t *testing.T) {
	file := sample(t, smallBlob)
	for i := range len(file) {
		if i > 300 && i < len(file)-300 && i%997 != 0 {
			continue
		}
		_, err := walk(bytes.NewReader(file[:i]))
		var cut *DamageError
		require.ErrorAs(t, err, &cut, "cut at %d", i)
		assert.LessOrEqual(t, cut.Offset, int64(i))
		bad := bytes.Clone(file)
		bad[i] ^= 1 << (i % 8)
		_, err = walk(bytes.NewReader(bad))
		require.Error(t, err, "byte %d turned", i)
		if i < len(magic) {
			require.ErrorIs(t, err, ErrVersion)
			continue
		}
		var d *DamageError
		require.ErrorAs(t, err, &d, "byte %d turned", i)
		assert.LessOrEqual(t, d.Offset, int64(i))
	}
	_, err := walk(bytes.NewReader(append(bytes.Clone(file), 0)))
	assert.ErrorContains(t, err, "something follows the end")
	_, err = walk(strings.NewReader("vft export 2\nwhatever"))
	require.ErrorIs(t, err, ErrVersion)
	assert.ErrorContains(t, err, `known is "vft export 1\n"`)
	broken := errors.New("broken")
	_, err = walk(io.MultiReader(bytes.NewReader(file[:1000]), iotest.ErrReader(broken)))
	require.ErrorIs(t, err, broken)
	assert.NotErrorIs(t, err, ErrDamaged, "the file may be good")
}

// Records whose digests are right but that make no sense are refused, too.
func TestNonsense(t *testing.T) {
	type raw struct {
		t Type
		b []byte
	}
	file := func(records ...raw) []byte {
		var b bytes.Buffer
		w := NewWriter(&b)
		w.write([]byte(magic))
		for _, r := range records {
			w.write(binary.LittleEndian.AppendUint32([]byte{byte(r.t)}, uint32(len(r.b))))
			w.write(r.b)
			w.write(w.sum.Sum(nil)[:sumSize])
		}
		return b.Bytes()
	}
	ended := func(n uint64) raw { return raw{end, binary.LittleEndian.AppendUint64(nil, n)} }
	blob := func(size uint64) raw { return raw{Blob, binary.LittleEndian.AppendUint64(emptyID[:], size)} }
	job := raw{Job, []byte("job")}
	for name, x := range map[string]struct {
		file []byte
		want string
	}{
		"no job":            {file(raw{Manifest, nil}), "a manifest stands here"},
		"two jobs":          {file(job, job), "a job stands here"},
		"only an end":       {file(ended(0)), "a end stands here"},
		"another count":     {file(job, ended(2)), "it ends after 1 records and says 2"},
		"short end":         {file(job, raw{end, nil}), "a end of 0 bytes"},
		"data alone":        {file(job, raw{data, []byte{1}}), "belongs to no blob"},
		"short blob record": {file(job, raw{Blob, emptyID[:]}), "a blob of 32 bytes"},
		"endless blob":      {file(job, blob(1<<63)), "a blob of 9223372036854775808 bytes"},
		"blob cut off":      {file(job, blob(3), raw{data, []byte{1}}, ended(3)), "2 bytes of a blob are missing"},
		"too much data":     {file(job, blob(3), raw{data, make([]byte, 4)}), "where 3 bytes of a blob"},
		"empty data":        {file(job, blob(3), raw{data, nil}), "a data of 0 bytes"},
		"unknown":           {file(job, raw{'X', nil}), "there is no record of type 0x58"},
		"too long":          {file(job, raw{Manifest, make([]byte, maxManifest+1)}), "at most 1048576 are possible"},
		"short extent":      {file(job, raw{Extent, []byte{1}}), "it is too short"},
		"many objects":      {file(job, raw{Extent, []byte{1, 0, 255, 255, 0, 0, 0, 0}}), "65535 objects"},
		"other codec":       {file(job, raw{Extent, []byte{1, 2, 0, 0, 0, 0, 0, 0}}), "codec 2"},
		"empty extent":      {file(job, raw{Extent, []byte{1, 0, 0, 0, 0, 0, 0, 0}}), "the extent contradicts itself"},
	} {
		_, err := walk(bytes.NewReader(x.file))
		require.ErrorIs(t, err, ErrDamaged, name)
		assert.ErrorContains(t, err, x.want, name)
	}
	types, err := walk(bytes.NewReader(file(job, ended(1))))
	require.NoError(t, err)
	assert.Equal(t, "J", types)
}

func TestWriterRefuses(t *testing.T) {
	assert.ErrorContains(t, NewWriter(io.Discard).Manifest(nil), "a manifest as record 1")
	assert.ErrorContains(t, NewWriter(io.Discard).Job(make([]byte, maxJob+1)), "at most")
	fresh := func() *Writer {
		w := NewWriter(io.Discard)
		require.NoError(t, w.Job(nil))
		return w
	}
	assert.Error(t, fresh().Job(nil))
	assert.Error(t, fresh().Extent(object.Extent{Kind: object.KindPage, Length: 3}))
	assert.Error(t, fresh().Blob("short", 0, nil))
	digest := hex.EncodeToString(emptyID[:])
	w := fresh()
	require.ErrorIs(t, w.Blob(digest, 5, strings.NewReader("1234")), io.ErrUnexpectedEOF)
	assert.ErrorIs(t, w.End(), io.ErrUnexpectedEOF, "a file with a hole ended well")
}

// FuzzReader: whatever a file holds, reading it ends, without more memory than
// a record has.
func FuzzReader(f *testing.F) {
	file := sample(f, smallBlob)
	f.Add(file)
	f.Add(file[:len(file)/2])
	f.Add([]byte(magic))
	f.Add(append([]byte(magic), byte(Job), 0xff, 0xff, 0xff, 0x00))
	f.Fuzz(func(t *testing.T, b []byte) {
		whole, err := walk(bytes.NewReader(b))
		if err == nil && !strings.HasPrefix(whole, "J") {
			t.Errorf("a file of %q is taken for whole", whole)
		}
		// The digests keep the fuzzer from what is behind them: give it a file
		// with right ones.
		var signed bytes.Buffer
		w := NewWriter(&signed)
		w.write([]byte(magic))
		for rest := b; len(rest) >= 3; {
			n := min(int(binary.LittleEndian.Uint16(rest[1:])), len(rest)-3)
			w.write(binary.LittleEndian.AppendUint32([]byte{rest[0]}, uint32(n)))
			w.write(rest[3 : 3+n])
			w.write(w.sum.Sum(nil)[:sumSize])
			rest = rest[3+n:]
		}
		r := NewReader(&signed)
		for {
			rec, err := r.Next()
			if err != nil {
				break
			}
			if rec.Type == Extent {
				if e, err := r.Extent(rec); err == nil {
					_, _ = e.Decode(nil)
				}
			}
			if cap(r.buf) > 2*maxJob {
				t.Errorf("%d bytes of memory", cap(r.buf))
			}
		}
	})
}
