package actserve

import (
	"cmp"
	"context"
	"math"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// LogitEffect is which tokens a feature makes likelier by itself: its direction goes through the final norm
// and the unembedding, with no layer between (the direct effect; Elhage et al., "A Mathematical Framework
// for Transformer Circuits", 2021).
type LogitEffect struct {
	// Feature is its index.
	Feature uint32
	// Top are the tokens that it raises most, most first.
	Top []TokenEffect
	// Bottom are the tokens that it lowers most, most first.
	Bottom []TokenEffect
}

// TokenEffect is what a feature does to the logit of one token.
type TokenEffect struct {
	// ID is the token's.
	ID uint32
	// Text is the token, decoded alone.
	Text string
	// Effect is added to the logit by one unit of the feature, as at a row whose elements have a mean
	// square of one; at other rows all are larger or smaller by one factor.
	Effect float32
}

// featureDose is how much of a feature makes up the row whose logits are read: enough for the small number
// that norms add to the square of a row to be nothing beside it.
const featureDose = 10

// LogitEffects returns the k tokens that each of some features raises most, and the k that it lowers most.
// The dictionary, models/{model}/dictionaries/{dictionary}, writes to the residual stream. Features may be
// as many as a call has items, less one.
func (c *Client) LogitEffects(
	ctx context.Context, dictionary string, features []uint32, k int,
) ([]LogitEffect, error) {
	request := logitEffectsRequest(dictionary, features)
	read, err := c.FetchActivations(ctx, request)
	if err != nil {
		return nil, err
	}
	nothing, err := read.Items[0].Readouts.Rows("row", "logits")
	if err != nil {
		return nil, err
	}
	effects := make([]LogitEffect, len(features))
	for i, feature := range features {
		readouts := read.Items[i+1].Readouts
		logits, err := readouts.Rows("row", "logits")
		if err != nil {
			return nil, err
		}
		written, err := readouts.Rows("row", lastResidual)
		if err != nil {
			return nil, err
		}
		effects[i] = LogitEffect{Feature: feature}
		effects[i].Top, effects[i].Bottom = strongest(logits.Data, nothing.Data, written.Data, k)
	}
	return effects, c.nameTokens(ctx, request.GetModel(), effects)
}

const lastResidual = "resid_post.-1"

// logitEffectsRequest reads the logits of a row that is zero, and of one that is each feature alone, in
// place of the last row of the residual stream.
func logitEffectsRequest(dictionary string, features []uint32) *actservev1.FetchActivationsRequest {
	last := Must(ParsePositions("last"))
	clearing := &actservev1.Intervention{
		Sites: Must(parseSites([]string{lastResidual})), Positions: last,
		Operation: &actservev1.Intervention_Zero{Zero: &actservev1.ZeroOperation{}},
	}
	item := func(changes ...*actservev1.Intervention) *actservev1.FetchItem {
		return &actservev1.FetchItem{Prompt: TokenPrompt(0), Interventions: changes}
	}
	items := []*actservev1.FetchItem{item(clearing)}
	for _, feature := range features {
		add := Must(Add(FeatureVector(dictionary, feature), proto.Float32(featureDose), lastResidual))
		add.Positions = last
		items = append(items, item(clearing, add))
	}
	readout := Must(RowReadout("row", "last", lastResidual, "logits"))
	readout.GetRows().ElementType = actservev1.ElementType_ELEMENT_TYPE_F32
	model, _, _ := strings.Cut(dictionary, "/dictionaries/")
	return &actservev1.FetchActivationsRequest{
		Model: model, Items: items, Readouts: []*actservev1.Readout{readout}, FailFast: true,
	}
}

// strongest returns the k tokens that are raised most and lowered most. Of nothing, logits are not zero
// where norms have biases.
func strongest(logits, nothing, written []float32, k int) (top, bottom []TokenEffect) {
	squares := 0.0
	for _, element := range written {
		squares += float64(element) * float64(element)
	}
	scale := math.Sqrt(squares/float64(len(written))) / featureDose
	effects := make([]TokenEffect, len(logits))
	for id, logit := range logits {
		effects[id] = TokenEffect{ID: uint32(id), Effect: float32(float64(logit-nothing[id]) * scale)}
	}
	slices.SortStableFunc(effects, func(a, b TokenEffect) int { return cmp.Compare(b.Effect, a.Effect) })
	k = max(0, min(k, len(effects)))
	top = slices.Clone(effects[:k])
	bottom = slices.Clone(effects[len(effects)-k:])
	slices.Reverse(bottom)
	return top, bottom
}

// nameTokens writes the texts of the tokens of effects.
func (c *Client) nameTokens(ctx context.Context, model string, effects []LogitEffect) error {
	ids := []uint32{}
	for _, effect := range effects {
		for _, each := range slices.Concat(effect.Top, effect.Bottom) {
			ids = append(ids, each.ID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	slices.Sort(ids)
	ids = slices.Compact(ids)
	answer, err := c.Tokenize(ctx, &actservev1.TokenizeRequest{Model: model, Prompt: TokenPrompt(ids...)})
	if err != nil {
		return err
	}
	texts := answer.GetPrompt().GetTexts()
	if len(texts) != len(ids) {
		return badResponse("sent %d texts of %d tokens", len(texts), len(ids))
	}
	for _, effect := range effects {
		for _, tokens := range [][]TokenEffect{effect.Top, effect.Bottom} {
			for i := range tokens {
				at, _ := slices.BinarySearch(ids, tokens[i].ID)
				tokens[i].Text = texts[at]
			}
		}
	}
	return nil
}
