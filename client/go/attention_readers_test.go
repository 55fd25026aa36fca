package actserve

import (
	"testing"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

func TestAttentionIsNotFilledUpFarBeyondWhatWasSent(t *testing.T) {
	const count = 1000
	queries := make([]uint32, count)
	for i := range queries {
		queries[i] = uint32(i)
	}
	for run, fits := range map[int]bool{count: true, 100 * count: false} {
		read := newAttentionReader(&actservev1.AttentionReadout{Heads: []uint32{0}})
		if err := read.add(&actservev1.AttentionChunk{
			Queries: queries, Weights: Must(EncodeTensor(make([]float32, count*count), count, count)),
		}); err != nil {
			t.Fatal(err)
		}
		if err := read.finish(queries, run, &Readout{}); fits != (err == nil) {
			t.Errorf("of %d tokens: %v", run, err)
		}
	}
}
