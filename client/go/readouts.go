package actserve

import (
	"maps"
	"slices"
)

// Readouts are what was read of one sequence, by the name of the readout.
type Readouts map[string]Readout

// Rows returns those of one site, as the request writes it. The error, INVALID_ARGUMENT, says what
// there is instead.
func (r Readouts) Rows(name, site string) (Rows, error) {
	return found(r, "rows", name, site, func(readout Readout) map[string]Rows { return readout.Rows })
}

// Predictions returns those of one site, as Rows does.
func (r Readouts) Predictions(name, site string) (Predictions, error) {
	return found(r, "predictions", name, site,
		func(readout Readout) map[string]Predictions { return readout.Predictions })
}

func found[T any](
	readouts Readouts, kind, name, site string, of func(Readout) map[string]T,
) (there T, err error) {
	readout, ok := readouts[name]
	if !ok {
		return there, invalid("FIELD_INVALID", "", "there is no readout %q, but %q", name,
			slices.Sorted(maps.Keys(readouts)))
	}
	if there, ok = of(readout)[site]; !ok {
		return there, invalid("SITE_INVALID", "", "the readout %q has no %s of %q, but of %q", name, kind,
			site, slices.Sorted(maps.Keys(of(readout))))
	}
	return there, nil
}

// Readout is what one readout read of one sequence. What it was not asked for is empty. Sites are
// written as in the request: resid_post.-1 stays so.
type Readout struct {
	// Rows are by site.
	Rows map[string]Rows
	// Predictions are by site.
	Predictions map[string]Predictions
	// Attention is by query head.
	Attention map[uint32]Attention
	// AttentionSummary is by zero-based layer.
	AttentionSummary map[uint32]AttentionSummary
	// LogitAttribution is by site.
	LogitAttribution map[string]LogitAttribution
	// Kept is the name of what a KeepReadout has kept, as [ReplaceByKept] takes it; empty if it read
	// no position.
	Kept string
}

// Rows are activations of one site: a Tensor of shape [positions, width].
type Rows struct {
	Tensor
	// Positions are those of the rows in the sequence, ascending; with a reduction the last one
	// that was reduced.
	Positions []uint32
	// Indices are the directions that the elements belong to, as many as Data: with
	// Projection.send_top only.
	Indices []uint32
}

// Predictions are what the model would say next, seen from one site. What was not asked for is the
// zero Tensor. Log probabilities are natural.
type Predictions struct {
	// Positions are those of the rows, ascending. The prediction is of the token after it.
	Positions []uint32
	// TopIDs are the likeliest tokens, top_k for each position, likeliest first.
	TopIDs []uint32
	// TopTexts are those tokens, each decoded alone.
	TopTexts []string
	// TopLogprobs are theirs, [positions, top_k].
	TopLogprobs Tensor
	// TokenLogprobs are those of the tokens that the request names, [positions, tokens].
	TokenLogprobs Tensor
	// NextTokenLogprobs are those of the prompt token that does come next, [positions]; NaN where
	// there is none.
	NextTokenLogprobs Tensor
}

// Attention is how the queries of one head attend.
type Attention struct {
	// Queries are their positions, ascending.
	Queries []uint32
	// Weights are [queries, keys], with a key for each token that was run; with top_k [queries,
	// top_k], largest first.
	Weights Tensor
	// Keys are the positions of the keys, as many as weights: with top_k only. -1 where a query has
	// fewer keys.
	Keys []int32
}

// AttentionSummary is how the heads of one layer attend, in means over the queries. The contract's
// AttentionSummaryChunk has the formulas. Every Tensor is [heads], but AtOffsets is [heads, offsets]
// and TopKeyMeans [heads, top_keys].
type AttentionSummary struct {
	// Queries are how many there were.
	Queries uint32
	// PreviousTokenQueries, InductionQueries and OffsetQueries are how many of them the mean of
	// that name is over.
	PreviousTokenQueries, InductionQueries uint32
	OffsetQueries                          []uint32

	PreviousToken, CurrentToken, FirstToken Tensor
	Induction                               Tensor
	// Entropy is in nats, Distance in tokens.
	Entropy, Distance Tensor
	AtOffsets         Tensor
	// TopKeys are the positions of the keys that receive most, head by head; -1 where fewer do.
	TopKeys     []int32
	TopKeyMeans Tensor
}

// LogitAttribution is how much each row of one site adds to some logits: [positions, targets], and
// of z [positions, heads, targets].
type LogitAttribution struct {
	Tensor
	// Positions are those of the rows, ascending.
	Positions []uint32
	// TargetConstants are what the bias of the final norm adds to each target; empty where it has
	// none.
	TargetConstants []float32
}
