package ckpt

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/mpirun-vft/vft/ckpt/object"
	"github.com/mpirun-vft/vft/ckpt/table"
)

// Sizes of format 2 (docs/CKPT.md), in bytes where nothing else is said.
const (
	manifestVersion = 2
	sectionChunk    = 64 << 10
	maxManifest     = 1 << 20
	maxCompat       = 256 << 10
	maxFrame        = 1 << 20
	maxBlocks       = 256
	maxBlockName    = 255
	maxHot          = 8192 // ranges
)

// Manifest describes a part completely; its digest names the part's content.
// docs/CKPT.md specifies the encoding.
type Manifest struct {
	Version     int    `json:"version"`
	Job         string `json:"job"`
	Epoch       uint64 `json:"epoch"`
	Guest       int    `json:"guest"`
	Incarnation uint64 `json:"incarnation"`
	Engine      string `json:"engine"`
	CutAt       int64  `json:"cut_at"` // Unix nanoseconds, 0: not recorded

	Head    Section      `json:"head"`
	Blocks  []BlockTable `json:"blocks"`
	Tail    Section      `json:"tail"`
	Channel Section      `json:"channel"`
	Frames  int          `json:"frames"` // in the channel section
	Hot     Section      `json:"hot"`

	Pages   uint64 `json:"pages"`   // that are not zero
	Changed uint64 `json:"changed"` // of them, those that the parent part does not have

	Compat json.RawMessage   `json:"compat,omitempty"`
	Extra  map[string]string `json:"extra,omitempty"`
}

// Section is a sequence of bytes, stored as data objects.
type Section struct {
	Size   int64       `json:"size"`   // bytes
	Chunks []object.ID `json:"chunks"` // each of 64 KiB, the last one shorter
}

// Block is one block of guest memory: RAM, a ROM, a device's memory.
type Block struct {
	Name   string `json:"name"`
	Length uint64 `json:"length"` // bytes, a multiple of object.PageSize
}

// Pages is the number of pages of the block.
func (b Block) Pages() uint64 { return b.Length / object.PageSize }

// BlockTable is a block with the root of its page table.
type BlockTable struct {
	Block
	Root object.ID `json:"root"`
}

func (b BlockTable) table() table.Table { return table.Table{Pages: b.Pages(), Root: b.Root} }

// Meta is what the taker of a checkpoint says about a part at its commit.
type Meta struct {
	Incarnation  uint64
	Engine       string
	CutAt        time.Time         // when the guest was stopped
	ChannelState [][]byte          // frames, in the order in which they were read from the port; each at most 1 MiB
	Compat       json.RawMessage   // what a restore must match; at most 256 KiB
	Extra        map[string]string // anything else worth keeping
}

func (m *Meta) validate() error {
	if !utf8.ValidString(m.Engine) {
		return fmt.Errorf("engine %q is not UTF-8", m.Engine)
	}
	for k, v := range m.Extra {
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return fmt.Errorf("extra %q: %q is not UTF-8", k, v)
		}
	}
	if len(m.Compat) > maxCompat {
		return fmt.Errorf("compat has %d bytes, at most %d are allowed", len(m.Compat), maxCompat)
	}
	if len(m.Compat) > 0 && (!json.Valid(m.Compat) || !utf8.Valid(m.Compat)) {
		return errors.New("compat is not JSON")
	}
	for i, f := range m.ChannelState {
		if len(f) > maxFrame {
			return fmt.Errorf("frame %d of the channel state has %d bytes, at most %d are allowed", i, len(f), maxFrame)
		}
	}
	return nil
}

// ID returns the id of the part that the manifest describes.
func (m *Manifest) ID() PartID { return PartID{Job: m.Job, Epoch: m.Epoch, Guest: m.Guest} }

// sections lists the sections with their names, in the order of the manifest.
func (m *Manifest) sections() []namedSection {
	return []namedSection{{"head", &m.Head}, {"tail", &m.Tail}, {"channel", &m.Channel}, {"hot", &m.Hot}}
}

type namedSection struct {
	name string
	*Section
}

// encode returns the manifest's bytes, the same for equal manifests.
func (m *Manifest) encode() ([]byte, error) {
	if err := m.validate(); err != nil {
		return nil, err
	}
	b, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	if len(b) > maxManifest {
		return nil, fmt.Errorf("manifest has %d bytes, at most %d are allowed", len(b), maxManifest)
	}
	return b, nil
}

// parseManifest reads and checks what encode wrote.
func parseManifest(b []byte) (*Manifest, error) {
	if len(b) > maxManifest {
		return nil, fmt.Errorf("manifest has %d bytes, at most %d are allowed", len(b), maxManifest)
	}
	// Another version may have other members, and must be told apart first.
	var v struct {
		Version *int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if v.Version == nil {
		return nil, errors.New("manifest has no version")
	}
	if *v.Version != manifestVersion {
		return nil, &VersionError{What: "manifest", Found: fmt.Sprint(*v.Version), Known: fmt.Sprint(manifestVersion)}
	}
	m := new(Manifest)
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if dec.InputOffset() != int64(len(b)) {
		return nil, errors.New("manifest: bytes after its end")
	}
	if err := m.validate(); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *Manifest) validate() error {
	if err := m.ID().Validate(); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	for _, s := range m.sections() {
		if err := s.validate(); err != nil {
			return fmt.Errorf("manifest: %s: %w", s.name, err)
		}
	}
	if m.Frames < 0 || int64(m.Frames) > m.Channel.Size/frameHeader {
		return fmt.Errorf("manifest: %d frames cannot be in %d bytes", m.Frames, m.Channel.Size)
	}
	if m.Hot.Size%hotSize != 0 || m.Hot.Size > maxHot*hotSize {
		return fmt.Errorf("manifest: %d bytes of hot pages", m.Hot.Size)
	}
	if err := validateBlocks(m.blocks()); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	var all uint64
	for _, b := range m.Blocks {
		all += b.Pages()
	}
	if m.Pages > all || m.Changed > m.Pages {
		return fmt.Errorf("manifest: %d pages, %d of them changed, of %d", m.Pages, m.Changed, all)
	}
	return nil
}

func (m *Manifest) blocks() []Block {
	blocks := make([]Block, len(m.Blocks))
	for i, b := range m.Blocks {
		blocks[i] = b.Block
	}
	return blocks
}

// validateBlocks fails when a part cannot have these blocks.
func validateBlocks(blocks []Block) error {
	if len(blocks) > maxBlocks {
		return fmt.Errorf("%d blocks, at most %d are allowed", len(blocks), maxBlocks)
	}
	var all uint64
	for i, b := range blocks {
		switch {
		case b.Name == "" || len(b.Name) > maxBlockName || !utf8.ValidString(b.Name):
			return fmt.Errorf("block %d: name %q", i, b.Name)
		case b.Length%object.PageSize != 0 || b.Pages() > table.MaxPages:
			return fmt.Errorf("block %q: length %d", b.Name, b.Length)
		}
		all += b.Pages()
	}
	if all > table.MaxPages {
		return fmt.Errorf("%d pages, at most %d are allowed", all, uint64(table.MaxPages))
	}
	return nil
}

func (s *Section) validate() error {
	if s.Size < 0 || int64(len(s.Chunks)) != (s.Size+sectionChunk-1)/sectionChunk {
		return fmt.Errorf("%d chunks cannot be %d bytes", len(s.Chunks), s.Size)
	}
	for i, id := range s.Chunks {
		if id.IsZero() {
			return fmt.Errorf("chunk %d has no id", i)
		}
	}
	return nil
}

// rest is how many bytes the part has besides pages.
func (m *Manifest) rest(encoded int) int64 {
	n := int64(encoded)
	for _, s := range m.sections() {
		n += s.Size
	}
	return n
}

func (m *Manifest) info(digest string, encoded int) Info {
	rest := m.rest(encoded)
	info := Info{
		ID:            m.ID(),
		Manifest:      digest,
		Size:          int64(m.Pages)*object.PageSize + rest,
		Changed:       int64(m.Changed)*object.PageSize + rest,
		ChannelFrames: m.Frames,
		Incarnation:   m.Incarnation,
		Engine:        m.Engine,
	}
	if m.CutAt != 0 {
		info.CutAt = time.Unix(0, m.CutAt)
	}
	return info
}

// manifestHeader starts the first line of a manifest file; the digest and a
// newline follow.
const manifestHeader = "vft-part 2 "

// manifestPrefix is the length of the first line.
const manifestPrefix = len(manifestHeader) + digestLen + 1

func manifestFile(digest string, manifest []byte) []byte {
	b := make([]byte, 0, manifestPrefix+len(manifest))
	b = append(b, manifestHeader...)
	b = append(b, digest...)
	b = append(b, '\n')
	return append(b, manifest...)
}

// parseManifestFile returns the digest and the manifest's bytes of a manifest
// file, after comparing the two.
func parseManifestFile(b []byte) (digest string, manifest []byte, err error) {
	if len(b) < manifestPrefix {
		return "", nil, errors.New("file is too short")
	}
	head, manifest := string(b[:manifestPrefix]), b[manifestPrefix:]
	digest = head[len(manifestHeader) : manifestPrefix-1]
	if head[:len(manifestHeader)] != manifestHeader || head[manifestPrefix-1] != '\n' {
		return "", nil, errors.New("first line is damaged")
	}
	if Digest(manifest) != digest {
		return "", nil, errors.New("digest differs")
	}
	return digest, manifest, nil
}

// frameHeader is the length of a frame's length field in the channel section.
const frameHeader = 4

// encodeFrames returns the bytes of a channel section.
func encodeFrames(frames [][]byte) []byte {
	n := 0
	for _, f := range frames {
		n += frameHeader + len(f)
	}
	b := make([]byte, 0, n)
	for _, f := range frames {
		b = binary.BigEndian.AppendUint32(b, uint32(len(f)))
		b = append(b, f...)
	}
	return b
}

// parseFrames returns the frames of a channel section. They share b's memory.
func parseFrames(b []byte, count int) ([][]byte, error) {
	if count < 0 || count > len(b)/frameHeader {
		return nil, fmt.Errorf("%d frames cannot be in %d bytes", count, len(b))
	}
	frames := make([][]byte, 0, count)
	for len(b) > 0 {
		if len(b) < frameHeader {
			return nil, fmt.Errorf("frame %d: length is cut off", len(frames))
		}
		n := binary.BigEndian.Uint32(b)
		b = b[frameHeader:]
		if n > maxFrame || int(n) > len(b) {
			return nil, fmt.Errorf("frame %d: length %d with %d bytes left", len(frames), n, len(b))
		}
		frames = append(frames, b[:n:n])
		b = b[n:]
	}
	if len(frames) != count {
		return nil, fmt.Errorf("%d frames where the manifest says %d", len(frames), count)
	}
	return frames, nil
}

// PageRange is pages of one block, one after the other.
type PageRange struct {
	Block        int // index of the block
	First, Count uint64
}

const (
	hotSize  = 16 // bytes of a range of hot pages
	hotBlock = 48 // bits of a page's number below the block's
)

// encodeHot returns the bytes of a section of hot pages.
func encodeHot(ranges []PageRange) []byte {
	b := make([]byte, 0, len(ranges)*hotSize)
	for _, r := range ranges {
		b = binary.LittleEndian.AppendUint64(b, uint64(r.Block)<<hotBlock|r.First)
		b = binary.LittleEndian.AppendUint64(b, r.Count)
	}
	return b
}

// parseHot reads what encodeHot wrote for a part with these blocks.
func parseHot(b []byte, blocks []BlockTable) ([]PageRange, error) {
	ranges := make([]PageRange, 0, len(b)/hotSize)
	for ; len(b) >= hotSize; b = b[hotSize:] {
		w := binary.LittleEndian.Uint64(b)
		r := PageRange{Block: int(w >> hotBlock), First: w & (1<<hotBlock - 1), Count: binary.LittleEndian.Uint64(b[8:])}
		if r.Block >= len(blocks) || r.First >= blocks[r.Block].Pages() || r.Count > blocks[r.Block].Pages()-r.First {
			return nil, fmt.Errorf("%d hot pages from page %d of block %d", r.Count, r.First, r.Block)
		}
		ranges = append(ranges, r)
	}
	if len(b) > 0 {
		return nil, errors.New("hot pages are cut off")
	}
	return ranges, nil
}
