package actserve

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// everyKind asks for one readout of each kind.
var everyKind = []*actservev1.Readout{
	Must(RowReadout("rows", "all", "resid_post.1", "final_norm")),
	{Name: "lens", Kind: &actservev1.Readout_Predictions{
		Predictions: &actservev1.PredictionReadout{TopK: 2, TokenIds: []uint32{1}, NextToken: true},
	}},
	{Name: "heads", Kind: &actservev1.Readout_Attention{
		Attention: &actservev1.AttentionReadout{Layer: proto.Int32(0), Heads: []uint32{0, 1}},
	}},
	{Name: "largest", Kind: &actservev1.Readout_Attention{
		Attention: &actservev1.AttentionReadout{
			Layer: proto.Int32(0), Heads: []uint32{0}, TopK: proto.Uint32(2),
		},
	}},
	{Name: "summary", Kind: &actservev1.Readout_AttentionSummary{
		AttentionSummary: &actservev1.AttentionSummaryReadout{Offsets: []uint32{1}, TopKeys: 1},
	}},
	{Name: "direct", Kind: &actservev1.Readout_LogitAttribution{
		LogitAttribution: &actservev1.LogitAttributionReadout{
			Sites: []*actservev1.Site{Must(ParseSite("z.0")), Must(ParseSite("attn_out.0"))},
			Targets: []*actservev1.LogitTarget{
				{TokenId: proto.Uint32(1)},
			},
		},
	}},
	Must(KeepReadout("kept", "all", "resid_post.1")),
	{Name: "statistics", Kind: &actservev1.Readout_Rows{Rows: &actservev1.RowReadout{
		Sites:      []*actservev1.Site{Must(ParseSite("resid_post.1"))},
		Statistics: &actservev1.RowStatistics{SecondMoments: actservev1.SecondMoments_SECOND_MOMENTS_FULL},
	}}},
}

// Whatever a server sends, a collected call ends with an answer or an error. `go test -fuzz FuzzFetch`
// looks for what breaks that.
func FuzzFetch(f *testing.F) {
	where := []uint32{0, 1}
	f.Add(written(
		&actservev1.FetchActivationsResponse{Event: &actservev1.FetchActivationsResponse_Started{
			Started: &actservev1.FetchStarted{Readouts: []*actservev1.ReadoutStarted{
				{Widths: []uint32{1, 2}}, {}, {}, {}, {Layers: []uint32{0}}, {}, {}, {Widths: []uint32{2}},
			}},
		}},
		&actservev1.FetchActivationsResponse{Event: &actservev1.FetchActivationsResponse_ItemStarted{
			ItemStarted: &actservev1.ItemStarted{
				Prompt: &actservev1.TokenizedPrompt{Ids: where, Texts: []string{"a", "b"}},
				Positions: []*actservev1.ReadoutPositions{
					{ReadoutIndices: []uint32{0, 1, 2, 3, 4, 5, 6}, Positions: where},
				},
			},
		}},
		&actservev1.FetchActivationsResponse{Event: &actservev1.FetchActivationsResponse_Activations{
			Activations: &actservev1.ActivationChunk{
				Positions: where, Rows: Must(EncodeTensor([]float32{1, 2}, 2, 1)),
			},
		}},
		&actservev1.FetchActivationsResponse{Event: &actservev1.FetchActivationsResponse_Attention{
			Attention: &actservev1.AttentionChunk{
				ReadoutIndex: 3, Queries: where, Weights: Must(EncodeTensor(make([]float32, 4), 2, 2)),
				Keys: []int32{0, -1, 0, 1},
			},
		}},
		&actservev1.FetchActivationsResponse{Event: &actservev1.FetchActivationsResponse_LogitAttribution{
			LogitAttribution: &actservev1.LogitAttributionChunk{
				ReadoutIndex: 5, Positions: where, Contributions: Must(EncodeTensor(make([]float32, 4), 2, 2, 1)),
			},
		}},
		&actservev1.FetchActivationsResponse{Event: &actservev1.FetchActivationsResponse_AttentionSummary{
			AttentionSummary: &actservev1.AttentionSummaryChunk{
				ReadoutIndex: 4, Entropy: Must(EncodeTensor([]float32{1}, 1)),
			},
		}},
		&actservev1.FetchActivationsResponse{Event: &actservev1.FetchActivationsResponse_ItemFinished{
			ItemFinished: &actservev1.ItemFinished{},
		}},
		&actservev1.FetchActivationsResponse{Event: &actservev1.FetchActivationsResponse_Statistics{
			Statistics: &actservev1.LabelStatistics{
				ReadoutIndex: 7, Rows: 1, Mean: Must(EncodeTensor([]float32{1, 2}, 2)),
				SecondMoments: Must(EncodeTensor(make([]float32, 4), 2, 2)),
			},
		}},
		&actservev1.FetchActivationsResponse{Event: &actservev1.FetchActivationsResponse_Finished{
			Finished: &actservev1.FetchFinished{},
		}},
	))
	f.Fuzz(func(t *testing.T, sent []byte) {
		for kind := range len(everyKind) + 1 {
			call := newFetchCall(&actservev1.FetchActivationsRequest{
				Items:    []*actservev1.FetchItem{{}},
				Readouts: everyKind,
			})
			if kind < len(everyKind) {
				call.request.Items[0].ReadoutIndices = []uint32{uint32(kind)}
			}
			for events := bytes.NewReader(sent); ; {
				event := &actservev1.FetchActivationsResponse{}
				if protodelim.UnmarshalFrom(events, event) != nil || call.read(event) != nil {
					break
				}
			}
		}
	})
}

// The same of a sweep: `go test -fuzz FuzzSweep`.
func FuzzSweep(f *testing.F) {
	f.Add(written(
		&actservev1.RunSweepResponse{Event: &actservev1.RunSweepResponse_Started{
			Started: &actservev1.SweepStarted{Cells: 2},
		}},
		&actservev1.RunSweepResponse{Event: &actservev1.RunSweepResponse_Cell{
			Cell: &actservev1.SweepCell{CoefficientIndex: proto.Uint32(1), SiteIndex: proto.Uint32(0)},
		}},
		&actservev1.RunSweepResponse{Event: &actservev1.RunSweepResponse_Cell{
			Cell: &actservev1.SweepCell{CoefficientIndex: proto.Uint32(0), SiteIndex: proto.Uint32(0)},
		}},
		&actservev1.RunSweepResponse{Event: &actservev1.RunSweepResponse_Finished{
			Finished: &actservev1.SweepFinished{},
		}},
	))
	f.Fuzz(func(t *testing.T, sent []byte) {
		call := newSweepCall(&actservev1.RunSweepRequest{
			Prompts: []*actservev1.SweepPrompt{{}},
			Variants: []*actservev1.SweepVariant{
				{Coefficients: []float32{1, 2}, Sites: []*actservev1.Site{{}}},
			},
		})
		for events := bytes.NewReader(sent); ; {
			event := &actservev1.RunSweepResponse{}
			if protodelim.UnmarshalFrom(events, event) != nil || call.read(event) != nil {
				return
			}
			if call.finished != nil && len(call.result().Cells) != 2 {
				t.Fatal("a sweep of two cells is finished without them")
			}
		}
	})
}

func written(events ...proto.Message) []byte {
	var all bytes.Buffer
	for _, event := range events {
		if _, err := protodelim.MarshalTo(&all, event); err != nil {
			panic(err)
		}
	}
	return all.Bytes()
}
