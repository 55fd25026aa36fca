package actserve

import (
	"context"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// FetchResult is all that a FetchActivations call has read.
type FetchResult struct {
	// CallID is the server's id for the call, also in its logs.
	CallID string
	// Items are in the order of the request.
	Items []*Item
	// Statistics are of readouts that ask for them, by the name of the readout.
	Statistics map[string]Statistics
	// Usage is what the call consumed.
	Usage *actservev1.Usage
}

// Item is what was read of one item.
type Item struct {
	// Key is that of the request.
	Key string
	// Err is why the item failed, an [*Error]; nil if it did not. Then there is nothing else.
	Err error
	// Prompt is the prompt as the model saw it.
	Prompt *actservev1.TokenizedPrompt
	// Readouts are by name.
	Readouts Readouts
	// Interventions are what each intervention did: those of the call, then the item's own.
	Interventions []*actservev1.InterventionReport
}

// Statistics are how rows are distributed, by site and label.
type Statistics map[string]map[string]LabelStatistics

// LabelStatistics are of the rows of one label at one site.
type LabelStatistics struct {
	// Rows is how many there are.
	Rows uint64
	// Mean is theirs, [width].
	Mean Tensor
	// SecondMoments are about the mean and divided by the number of rows: [width], or the covariance
	// matrix [width, width].
	SecondMoments Tensor
}

// FetchActivations runs a model on items and returns what was read of each. It is all there, or an
// error; but an item that fails has its own, unless the request sets fail_fast. Results are found by
// the names of readouts, so give each one.
func (c *Client) FetchActivations(
	ctx context.Context, request *actservev1.FetchActivationsRequest,
) (*FetchResult, error) {
	if err := checkReadouts(request.GetReadouts()); err != nil {
		return nil, err
	}
	call := newFetchCall(request)
	for event, err := range c.FetchActivationsStream(ctx, request) {
		if err == nil {
			err = call.read(event)
		}
		if err != nil {
			return nil, err
		}
	}
	return call.result, nil
}

// fetchCall collects the events of a call.
type fetchCall struct {
	request    *actservev1.FetchActivationsRequest
	result     *FetchResult
	capture    *capture // Nil before `started`.
	open       map[uint32]*openItem
	statistics statisticsReader
	finished   bool
}

func newFetchCall(request *actservev1.FetchActivationsRequest) *fetchCall {
	return &fetchCall{
		request: request,
		result:  &FetchResult{Items: make([]*Item, len(request.GetItems()))},
		open:    map[uint32]*openItem{},
	}
}

type openItem struct {
	started  *actservev1.ItemStarted
	sequence *sequence
}

func (c *fetchCall) read(event *actservev1.FetchActivationsResponse) error {
	if event.GetEvent() == nil {
		return nil // Of a newer server; the contract says to skip it.
	}
	if started := event.GetStarted(); started != nil {
		return c.start(started)
	}
	if c.capture == nil || c.finished {
		return badResponse("sent an event before the call was started or after it was finished")
	}
	switch {
	case event.GetItemStarted() != nil:
		return c.openItem(event.GetItemStarted())
	case event.GetItemFinished() != nil:
		return c.closeItem(event.GetItemFinished())
	case event.GetStatistics() != nil:
		return c.statistics.add(event.GetStatistics())
	case event.GetFinished() != nil:
		return c.finish(event.GetFinished())
	}
	chunk := chunkOf(event)
	if chunk == nil {
		return nil
	}
	item := c.open[chunk.GetSequenceIndex()]
	if item == nil {
		return badResponse("sent something of item %d, which is not open", chunk.GetSequenceIndex())
	}
	return item.sequence.add(chunk)
}

func (c *fetchCall) start(started *actservev1.FetchStarted) error {
	if c.capture != nil {
		return badResponse("started the call twice")
	}
	c.result.CallID = started.GetCallId()
	c.capture = &capture{c.request.GetReadouts(), started.GetReadouts()}
	c.statistics = newStatisticsReader(c.capture, c.request.GetItems())
	return nil
}

func (c *fetchCall) openItem(started *actservev1.ItemStarted) error {
	index := started.GetItemIndex()
	if !c.pending(index) || c.open[index] != nil {
		return badResponse("opened item %d twice or unasked", index)
	}
	if err := checkPrompt(started.GetPrompt(), c.request.GetIdsOnly()); err != nil {
		return err
	}
	sequence, err := c.capture.newSequence(index, c.request.GetItems()[index].GetReadoutIndices())
	c.open[index] = &openItem{started, sequence}
	return err
}

// pending tells whether an item was asked for and is not closed yet.
func (c *fetchCall) pending(index uint32) bool {
	return int64(index) < int64(len(c.result.Items)) && c.result.Items[index] == nil
}

func (c *fetchCall) closeItem(closed *actservev1.ItemFinished) error {
	index := closed.GetItemIndex()
	if !c.pending(index) {
		return badResponse("closed item %d twice or unasked", index)
	}
	asked, item := c.request.GetItems()[index], c.open[index]
	delete(c.open, index)
	if closed.GetStatus().GetCode() != 0 {
		failed := errorOfStatus(closed.GetStatus())
		if failed.RequestID == "" {
			failed.RequestID = c.result.CallID
		}
		if c.request.GetFailFast() {
			return failed
		}
		c.result.Items[index] = &Item{Key: asked.GetKey(), Err: failed}
		return nil
	}
	if item == nil || item.started.GetPrompt() == nil {
		return badResponse("closed item %d, which is not open or has no prompt", index)
	}
	prompt := item.started.GetPrompt()
	readouts, err := item.sequence.finish(
		item.started.GetPositions(), closed.GetKept(), len(prompt.GetIds()))
	if err != nil {
		return err
	}
	c.statistics.expect(asked, item.started.GetPositions())
	c.result.Items[index] = &Item{
		Key:           asked.GetKey(),
		Prompt:        prompt,
		Readouts:      readouts,
		Interventions: closed.GetInterventions(),
	}
	return checkReports(closed.GetInterventions(),
		len(c.request.GetInterventions())+len(asked.GetInterventions()))
}

func (c *fetchCall) finish(finished *actservev1.FetchFinished) (err error) {
	for index, item := range c.result.Items {
		if item == nil {
			return badResponse("finished without closing item %d", index)
		}
	}
	c.finished = true
	c.result.Usage = finished.GetUsage()
	c.result.Statistics, err = c.statistics.finish()
	return err
}
