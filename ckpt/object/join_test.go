package object

import (
	"context"
	"testing"
)

// TestJoinWhileUnwanted adds what another batch gives up at the same time.
func TestJoinWhileUnwanted(t *testing.T) {
	s := open(t, testDir, smallPacks(newFS(t)))
	for round := range uint64(100) {
		all := pages(100*round, 100*round+64) // two extents
		first, second := s.NewBatch(context.Background()), s.NewBatch(context.Background())
		for _, x := range all {
			if err := first.Add(x.kind, x.id, x.data); err != nil {
				t.Fatal(err)
			}
		}
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			first.Close()
		}()
		for _, x := range all {
			if err := second.Add(x.kind, x.id, x.data); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		if err := second.Sync(context.Background()); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		<-closed
		second.Close()
		mustCheck(t, s, all)
	}
}
