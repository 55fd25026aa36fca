package actserve

import (
	"context"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// ReplayResult is all that a replay gave.
type ReplayResult struct {
	// CallID is the server's id for the call, also in its logs.
	CallID string
	// Items are in the order of the request.
	Items []*ReplayedItem
	// Usage is what the call consumed.
	Usage *actservev1.Usage
}

// ReplayedItem is what monitors scored in one item.
type ReplayedItem struct {
	// Key is that of the request.
	Key string
	// Err is why the item failed, an [*Error]; nil if it did not. Then there is nothing else.
	Err error
	// Scores are of the monitors of the request, in its order. [DecodeTensor] reads the scores as of each
	// token, if they were asked for.
	Scores []*actservev1.MonitorScore
}

// ReplayMonitors scores items by monitors, without acting and without alerts. It is all there, or an
// error; but an item that fails has its own.
func (c *Client) ReplayMonitors(
	ctx context.Context, request *actservev1.ReplayMonitorsRequest,
) (*ReplayResult, error) {
	call := &replayCall{
		request: request,
		result:  &ReplayResult{Items: make([]*ReplayedItem, len(request.GetItems()))},
	}
	for event, err := range c.ReplayMonitorsStream(ctx, request) {
		if err == nil {
			err = call.read(event)
		}
		if err != nil {
			return nil, err
		}
	}
	return call.result, nil
}

// replayCall collects the events of a call.
type replayCall struct {
	request  *actservev1.ReplayMonitorsRequest
	result   *ReplayResult
	started  *actservev1.ReplayStarted
	finished bool
}

func (c *replayCall) read(event *actservev1.ReplayMonitorsResponse) error {
	started := event.GetStarted()
	if event.GetEvent() == nil {
		return nil // Of a newer server; the contract says to skip it.
	}
	if (started == nil) == (c.started == nil) || c.finished {
		return badResponse("sent an event before the replay was started or after it was finished")
	}
	if started != nil {
		c.started, c.result.CallID = started, started.GetCallId()
		return nil
	}
	if item := event.GetItem(); item != nil {
		return c.add(item)
	}
	for index, item := range c.result.Items {
		if item == nil {
			return badResponse("finished without item %d", index)
		}
	}
	c.finished, c.result.Usage = true, event.GetFinished().GetUsage()
	return nil
}

func (c *replayCall) add(item *actservev1.ReplayedItem) error {
	index, monitors := item.GetItemIndex(), c.request.GetMonitors()
	if int64(index) >= int64(len(c.result.Items)) || c.result.Items[index] != nil {
		return badResponse("sent item %d, which was not asked for or has come", index)
	}
	replayed := &ReplayedItem{Key: c.request.GetItems()[index].GetKey()}
	c.result.Items[index] = replayed
	if item.GetStatus().GetCode() != 0 {
		failed := errorOfStatus(item.GetStatus())
		if failed.RequestID == "" {
			failed.RequestID = c.started.GetCallId()
		}
		replayed.Err = failed
		return nil
	}
	replayed.Scores = item.GetScores()
	if len(replayed.Scores) != len(monitors) {
		return badResponse("sent %d scores of item %d, not %d", len(replayed.Scores), index, len(monitors))
	}
	for i, score := range replayed.Scores {
		if score.GetMonitor() != monitors[i] {
			return badResponse("sent the score of %s in place of that of %s", score.GetMonitor(), monitors[i])
		}
	}
	return checkScores(replayed.Scores, c.request.GetEachToken())
}
