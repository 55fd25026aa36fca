package actserve

import (
	"context"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// ReconstructResult is all the rows that were made from texts.
type ReconstructResult struct {
	// CallID is the server's id for the call, also in its logs.
	CallID string
	// Nla is the name of what reconstructs: models/{model}/nlas/{nla}.
	Nla string
	// Rows are [texts, width], each of L2 norm sqrt(width): only its direction has a meaning.
	Rows Tensor
	// Usage is what the call consumed.
	Usage *actservev1.Usage
}

// ReconstructActivations makes rows from texts. The result is all there, or an error.
func (c *Client) ReconstructActivations(
	ctx context.Context, request *actservev1.ReconstructActivationsRequest,
) (*ReconstructResult, error) {
	call := &reconstructCall{texts: len(request.GetTexts()), rows: pieces{name: "rows"}}
	for event, err := range c.ReconstructActivationsStream(ctx, request) {
		if err == nil {
			err = call.read(event)
		}
		if err != nil {
			return nil, err
		}
	}
	return call.result, nil
}

// reconstructCall collects the events of a call.
type reconstructCall struct {
	texts    int
	width    int
	rows     pieces
	result   *ReconstructResult // Nil before `started`.
	finished bool
}

func (c *reconstructCall) read(event *actservev1.ReconstructActivationsResponse) error {
	if event.GetEvent() == nil {
		return nil // Of a newer server; the contract says to skip it.
	}
	if started := event.GetStarted(); started != nil {
		if c.result != nil || int64(started.GetRows()) != int64(c.texts) ||
			started.GetWidth() == 0 {
			return badResponse("started to make %d rows, %d wide, of %d texts, or twice",
				started.GetRows(), started.GetWidth(), c.texts)
		}
		c.width = int(started.GetWidth())
		c.result = &ReconstructResult{CallID: started.GetCallId(), Nla: started.GetNla()}
		return nil
	}
	if c.result == nil || c.finished {
		return badResponse("sent an event before the call was started or after it was finished")
	}
	if rows := event.GetRows(); rows != nil {
		return c.add(rows)
	}
	if finished := event.GetFinished(); finished != nil {
		if len(c.rows.positions) != c.texts {
			return badResponse("made %d rows of %d texts", len(c.rows.positions), c.texts)
		}
		c.finished = true
		c.result.Rows = c.rows.join(c.width)
		c.result.Usage = finished.GetUsage()
	}
	return nil
}

func (c *reconstructCall) add(rows *actservev1.ReconstructedRows) error {
	first, count := len(c.rows.positions), rowsOf(rows.GetRows())
	if int64(rows.GetFirstIndex()) != int64(first) || int64(count) > int64(c.texts-first) {
		return badResponse("sent %d rows from index %d on, but index %d of %d comes next",
			count, rows.GetFirstIndex(), first, c.texts)
	}
	indices := make([]uint32, count)
	for i := range indices {
		indices[i] = uint32(first + i)
	}
	return c.rows.add(indices, rows.GetRows(), c.width)
}
