package wrapper

import (
	"fmt"
	"os"
)

// spool keeps the bytes [base, end) of a stream in temporary files that have
// no name, so that nothing is left behind however the process ends. It is not
// safe for concurrent use.
type spool struct {
	dir       string
	segment   int64 // bytes per file
	files     map[int64]*os.File
	base, end int64
}

const spoolSegment = 64 << 20

func newSpool(dir string) *spool {
	return &spool{dir: dir, segment: spoolSegment, files: map[int64]*os.File{}}
}

func (s *spool) file(i int64) (*os.File, error) {
	if f := s.files[i]; f != nil {
		return f, nil
	}
	f, err := os.CreateTemp(s.dir, "mpirun-vft-*")
	if err != nil {
		return nil, fmt.Errorf("keeping a copy of the program's streams: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("keeping a copy of the program's streams: %w", err)
	}
	s.files[i] = f
	return f, nil
}

// append adds p at the end.
func (s *spool) append(p []byte) error {
	for len(p) > 0 {
		f, err := s.file(s.end / s.segment)
		if err != nil {
			return err
		}
		at := s.end % s.segment
		n := min(int64(len(p)), s.segment-at)
		if _, err := f.WriteAt(p[:n], at); err != nil {
			return fmt.Errorf("keeping a copy of the program's streams (TMPDIR says where): %w", err)
		}
		s.end += n
		p = p[n:]
	}
	return nil
}

// read fills p with what is kept from off on, as far as there is any.
func (s *spool) read(p []byte, off int64) (int, error) {
	if off < s.base {
		return 0, fmt.Errorf("byte %d was let go of; kept from %d on", off, s.base)
	}
	p = p[:min(int64(len(p)), max(0, s.end-off))]
	for done := 0; done < len(p); {
		f, err := s.file(off / s.segment)
		if err != nil {
			return done, err
		}
		at := off % s.segment
		n := int(min(int64(len(p)-done), s.segment-at))
		if _, err := f.ReadAt(p[done:done+n], at); err != nil {
			return done, fmt.Errorf("reading back the copy of the program's streams: %w", err)
		}
		done += n
		off += int64(n)
	}
	return len(p), nil
}

// truncate forgets what is at off and after.
func (s *spool) truncate(off int64) {
	s.end = max(s.base, min(s.end, off))
}

// trim forgets what is below off, file by file.
func (s *spool) trim(off int64) {
	off = min(off, s.end)
	if off <= s.base {
		return
	}
	s.base = off
	for i, f := range s.files {
		if (i+1)*s.segment <= off {
			_ = f.Close()
			delete(s.files, i)
		}
	}
}

// reset makes the spool empty, to go on at off.
func (s *spool) reset(off int64) {
	s.close()
	s.base, s.end = off, off
}

func (s *spool) close() {
	for i, f := range s.files {
		_ = f.Close()
		delete(s.files, i)
	}
}
