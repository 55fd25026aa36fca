package actserve

import (
	"cmp"
	"context"
	"iter"
	"slices"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// ExplainResult is all that was explained by one call.
type ExplainResult struct {
	// CallID is the server's id for the call, also in its logs.
	CallID string
	// Nla is the name of what explains: models/{model}/nlas/{nla}.
	Nla string
	// Site is where the rows come from.
	Site *actservev1.Site
	// Prompt is the prompt as the model saw it; of ExplainText only.
	Prompt *actservev1.TokenizedPrompt
	// Positions are those of the rows, ascending; of ExplainText only.
	Positions []uint32
	// Explanations are in the order of row and sample.
	Explanations []*actservev1.Explanation
	// Interventions are what each intervention did, in the order of the request.
	Interventions []*actservev1.InterventionReport
	// Usage is what the call consumed.
	Usage *actservev1.Usage
}

// ExplainActivations puts rows into words. The result is all there, or an error.
func (c *Client) ExplainActivations(
	ctx context.Context, request *actservev1.ExplainActivationsRequest,
) (*ExplainResult, error) {
	return explained(c.ExplainActivationsStream(ctx, request), &explainCall{
		spec: request.GetSpec(),
		rows: rowsOf(request.GetActivations()),
	})
}

// ExplainText puts into words what a model thinks at the tokens of a prompt. The result is all
// there, or an error.
func (c *Client) ExplainText(
	ctx context.Context, request *actservev1.ExplainTextRequest,
) (*ExplainResult, error) {
	return explained(c.ExplainTextStream(ctx, request), &explainCall{
		spec:          request.GetSpec(),
		ofText:        true,
		interventions: len(request.GetInterventions()),
	})
}

// CompareActivations puts into words how rows differ from others. The result is all there, or an
// error.
func (c *Client) CompareActivations(
	ctx context.Context, request *actservev1.CompareActivationsRequest,
) (*ExplainResult, error) {
	return explained(c.CompareActivationsStream(ctx, request), &explainCall{
		spec: request.GetSpec(),
		rows: rowsOf(request.GetActivations()),
	})
}

// rowsOf is the first axis of a tensor.
func rowsOf(tensor *actservev1.Tensor) uint32 {
	if len(tensor.GetShape()) == 0 {
		return 0
	}
	return tensor.GetShape()[0]
}

func explained(
	events iter.Seq2[*actservev1.ExplanationEvent, error], call *explainCall,
) (*ExplainResult, error) {
	for event, err := range events {
		if err == nil {
			err = call.read(event)
		}
		if err != nil {
			return nil, err
		}
	}
	return call.result, nil
}

// explainCall collects the events of a call.
type explainCall struct {
	spec          *actservev1.ExplainSpec
	rows          uint32 // That were sent, or that the server has found in a text.
	ofText        bool
	interventions int

	result   *ExplainResult // Nil before `started`.
	finished bool
}

func (c *explainCall) read(event *actservev1.ExplanationEvent) error {
	if event.GetEvent() == nil {
		return nil // Of a newer server; the contract says to skip it.
	}
	if started := event.GetStarted(); started != nil {
		return c.start(started)
	}
	if c.result == nil || c.finished {
		return badResponse("sent an event before the call was started or after it was finished")
	}
	if explanation := event.GetExplanation(); explanation != nil {
		return c.add(explanation)
	}
	if finished := event.GetFinished(); finished != nil {
		return c.finish(finished)
	}
	return nil
}

func (c *explainCall) start(started *actservev1.ExplainStarted) error {
	if c.result != nil {
		return badResponse("started the call twice")
	}
	if err := checkPrompt(started.GetPrompt(), false); err != nil {
		return err
	}
	if c.ofText {
		positions, tokens := started.GetPositions(), len(started.GetPrompt().GetIds())
		c.rows = uint32(len(positions))
		if !ascending(positions) ||
			len(positions) > 0 && int64(positions[len(positions)-1]) >= int64(tokens) {
			return badResponse("explains positions that a prompt of %d tokens does not have in this order",
				tokens)
		}
	}
	if started.GetRows() != c.rows {
		return badResponse("explains %d rows, not %d", started.GetRows(), c.rows)
	}
	c.result = &ExplainResult{
		CallID:    started.GetCallId(),
		Nla:       started.GetNla(),
		Site:      started.GetSite(),
		Prompt:    started.GetPrompt(),
		Positions: started.GetPositions(),
	}
	return nil
}

func (c *explainCall) samples() uint32 {
	if c.spec != nil && c.spec.Samples != nil {
		return c.spec.GetSamples()
	}
	return 1
}

func (c *explainCall) add(explanation *actservev1.Explanation) error {
	row, sample := explanation.GetRowIndex(), explanation.GetSampleIndex()
	if row >= c.rows || sample >= c.samples() {
		return badResponse("sent an explanation of row %d and sample %d, but there are %d rows and %d "+
			"samples of each", row, sample, c.rows, c.samples())
	}
	if uint64(len(c.result.Explanations)) >= c.count() {
		return badResponse("sent more than the %d explanations that were asked for", c.count())
	}
	c.result.Explanations = append(c.result.Explanations, explanation)
	return nil
}

// count is how many explanations there must be.
func (c *explainCall) count() uint64 { return uint64(c.rows) * c.each() }

// each is how many there must be of a row.
func (c *explainCall) each() uint64 {
	if c.spec.GetBest() {
		return 1
	}
	return uint64(c.samples())
}

func (c *explainCall) finish(finished *actservev1.ExplainFinished) error {
	all := c.result.Explanations
	slices.SortFunc(all, func(a, b *actservev1.Explanation) int {
		return cmp.Or(cmp.Compare(a.GetRowIndex(), b.GetRowIndex()),
			cmp.Compare(a.GetSampleIndex(), b.GetSampleIndex()))
	})
	if uint64(len(all)) != c.count() {
		return badResponse("sent %d explanations, but %d were asked for", len(all), c.count())
	}
	each := c.each()
	for i, explanation := range all {
		// As many as there must be, so one that is missing makes another come twice.
		row, sample := uint64(i)/each, uint64(i)%each
		if uint64(explanation.GetRowIndex()) != row ||
			!c.spec.GetBest() && uint64(explanation.GetSampleIndex()) != sample {
			return badResponse("sent no explanation of row %d and sample %d, and others twice", row, sample)
		}
	}
	c.finished = true
	c.result.Usage, c.result.Interventions = finished.GetUsage(), finished.GetInterventions()
	return checkReports(finished.GetInterventions(), c.interventions)
}
