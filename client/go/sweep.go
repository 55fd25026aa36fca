package actserve

import (
	"context"
	"iter"
	"maps"
	"slices"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// SweepResult is all that a sweep gave.
type SweepResult struct {
	// CallID is the server's id for the call, also in its logs; for the last one if the connection was
	// lost meanwhile.
	CallID string
	// Cells are in the order of the request: by prompt, variant, coefficient, site and position, the
	// last of which varies first. Those that a resume_token of the request stands for are left out.
	Cells []SweepCell
	// Usage is what the call consumed; the last one if the connection was lost meanwhile.
	Usage *actservev1.Usage
}

// SweepCell is what came of one prompt under one variant, at one point of its grid.
type SweepCell struct {
	*actservev1.SweepCell
	// Err is why the cell failed; nil if it was served.
	Err *Error
}

// RunSweep runs many prompts under many interventions, and returns what came of each. It is all there,
// or an error; a cell that failed has its error in its place. When the connection is lost, the sweep
// goes on after the last cell that came. A large sweep takes long: give ctx a deadline that fits, since
// the client's own is for calls. Cells that were served are stored for a while, so that an equal sweep
// later on is answered with them.
func (c *Client) RunSweep(
	ctx context.Context, request *actservev1.RunSweepRequest,
) (*SweepResult, error) {
	ctx, cancel := c.calls.withDeadline(ctx)
	defer cancel()
	call := newSweepCall(request)
	asked := clone(request)
	for attempt := 0; ; attempt++ {
		before := len(call.cells)
		err := call.readAll(c.RunSweepStream(ctx, asked))
		if err == nil {
			return call.result(), nil
		}
		failed := errorOf(err)
		if call.started == nil {
			return nil, failed // Before its first event the call was made again already.
		}
		if len(call.cells) > before {
			attempt = 0
		}
		method := actservev1.SweepService_RunSweep_FullMethodName
		if failed := pause(ctx, method, attempt, failed); failed != nil {
			return nil, failed
		}
		asked.ResumeToken = call.token
	}
}

// sweepCall collects the events of a sweep, over all its attempts.
type sweepCall struct {
	request   *actservev1.RunSweepRequest
	perPrompt int   // Cells of each prompt.
	first     []int // Of these, the number of the first of each variant.

	skipped  int64 // Cells that the caller has; known with the first `started`, and -1 before.
	cells    map[int]SweepCell
	token    []byte // For the next attempt.
	started  *actservev1.SweepStarted
	finished *actservev1.SweepFinished
}

func newSweepCall(request *actservev1.RunSweepRequest) *sweepCall {
	call := &sweepCall{
		request: request, skipped: -1, cells: map[int]SweepCell{}, token: request.GetResumeToken(),
	}
	for _, variant := range request.GetVariants() {
		call.first = append(call.first, call.perPrompt)
		call.perPrompt += max(1, len(variant.GetCoefficients())) *
			max(1, len(variant.GetSites())) * max(1, len(variant.GetPositions()))
	}
	return call
}

// readAll reads the events of one attempt.
func (c *sweepCall) readAll(events iter.Seq2[*actservev1.RunSweepResponse, error]) error {
	c.started, c.finished = nil, nil
	for event, err := range events {
		if err == nil {
			err = c.read(event)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *sweepCall) read(event *actservev1.RunSweepResponse) error {
	if event.GetEvent() == nil {
		return nil // Of a newer server; the contract says to skip it.
	}
	if started := event.GetStarted(); started != nil {
		return c.start(started)
	}
	if c.started == nil || c.finished != nil {
		return badResponse("sent an event before the sweep was started or after it was finished")
	}
	if cell := event.GetCell(); cell != nil {
		return c.add(cell)
	}
	c.finished = event.GetFinished()
	if have := c.skipped + int64(len(c.cells)); have != int64(c.started.GetCells()) {
		return badResponse("finished with %d cells of %d", have, c.started.GetCells())
	}
	return nil
}

func (c *sweepCall) start(started *actservev1.SweepStarted) error {
	cells, skipped := int64(started.GetCells()), int64(started.GetSkippedCells())
	if asked := int64(c.perPrompt) * int64(len(c.request.GetPrompts())); c.started != nil || cells != asked {
		return badResponse("started a sweep of %d cells, not %d, or started it twice", cells, asked)
	}
	if c.skipped < 0 && len(c.request.GetResumeToken()) > 0 {
		c.skipped = skipped
	}
	c.skipped = max(0, c.skipped)
	if have := c.skipped + int64(len(c.cells)); skipped != have {
		return badResponse("skipped %d cells, but %d have come", skipped, have)
	}
	c.started = started
	return nil
}

func (c *sweepCall) add(cell *actservev1.SweepCell) error {
	number, err := c.number(cell)
	if err != nil {
		return err
	}
	if _, ok := c.cells[number]; ok {
		return badResponse("sent cell %d twice", number)
	}
	added := SweepCell{SweepCell: cell}
	if cell.GetStatus().GetCode() != 0 {
		added.Err = errorOfStatus(cell.GetStatus())
		if added.Err.RequestID == "" {
			added.Err.RequestID = c.started.GetCallId()
		}
	} else if err := c.check(cell); err != nil {
		return err
	}
	c.cells[number], c.token = added, cell.GetResumeToken()
	return nil
}

// number counts the cells before this one in the order of the request.
func (c *sweepCall) number(cell *actservev1.SweepCell) (int, error) {
	prompt, variant := int64(cell.GetPromptIndex()), int64(cell.GetVariantIndex())
	if prompt >= int64(len(c.request.GetPrompts())) || variant >= int64(len(c.first)) {
		return 0, badResponse("sent a cell of prompt %d and variant %d, which nobody asked for",
			prompt, variant)
	}
	grid, point := c.request.GetVariants()[variant], 0
	for _, list := range []struct {
		name  string
		index *uint32
		size  int
	}{
		{"coefficients", cell.CoefficientIndex, len(grid.GetCoefficients())},
		{"sites", cell.SiteIndex, len(grid.GetSites())},
		{"positions", cell.PositionIndex, len(grid.GetPositions())},
	} {
		if list.index == nil && list.size == 0 {
			continue
		}
		if list.index == nil || int64(*list.index) >= int64(list.size) {
			return 0, badResponse("sent a cell of variant %d that is at none of its %d %s",
				variant, list.size, list.name)
		}
		point = point*list.size + int(*list.index)
	}
	return int(prompt)*c.perPrompt + c.first[variant] + point, nil
}

// check tells whether a cell that was served has what was asked for.
func (c *sweepCall) check(cell *actservev1.SweepCell) error {
	answers, scores := len(c.request.GetAnswers()), len(c.request.GetScores())
	if len(cell.GetAnswerLogprobs()) != answers || len(cell.GetScoreValues()) != scores {
		return badResponse("sent %d answers and %d scores of a cell, not %d and %d",
			len(cell.GetAnswerLogprobs()), len(cell.GetScoreValues()), answers, scores)
	}
	variant := c.request.GetVariants()[cell.GetVariantIndex()]
	return checkReports(cell.GetInterventions(), len(variant.GetInterventions()))
}

func (c *sweepCall) result() *SweepResult {
	result := &SweepResult{CallID: c.started.GetCallId(), Usage: c.finished.GetUsage()}
	for _, number := range slices.Sorted(maps.Keys(c.cells)) {
		result.Cells = append(result.Cells, c.cells[number])
	}
	return result
}
