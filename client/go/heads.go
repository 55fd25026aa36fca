package actserve

import (
	"context"
	"iter"
	"slices"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// HeadsResult is what was measured of attention heads.
type HeadsResult struct {
	// CallID is the server's id for the call, also in its logs.
	CallID string
	// Layers are the layers that were measured, ascending.
	Layers []uint32
	// Heads is how many query heads each of them has.
	Heads uint32
	// Metrics are of each head: by layer as in Layers, and then by head.
	Metrics []*actservev1.HeadMetrics
	// Items are in the order of the request.
	Items []*MeasuredItem
	// Usage is what the call consumed.
	Usage *actservev1.Usage
}

// Of returns what was measured of a head; nil if it was not.
func (r *HeadsResult) Of(layer, head uint32) *actservev1.HeadMetrics {
	at := slices.Index(r.Layers, layer)
	if at < 0 || head >= r.Heads {
		return nil
	}
	return r.Metrics[at*int(r.Heads)+int(head)]
}

// MeasuredItem is one item of a corpus.
type MeasuredItem struct {
	// Key is that of the request.
	Key string
	// Err is why the item failed, an [*Error], so that it counts in no number; nil if it did not.
	Err error
	// Prompt is the prompt as the model saw it.
	Prompt *actservev1.TokenizedPrompt
	// Patterns are of the heads, where the request asks for patterns; a head none of whose weights is
	// large enough has none.
	Patterns map[Head]HeadPattern
}

// Head names one attention head.
type Head struct {
	// Layer is the decoder layer, zero-based.
	Layer uint32
	// Head is the query head.
	Head uint32
}

// HeadPattern has the largest weights of each query of one head for one item: an entry of each list for
// each weight.
type HeadPattern struct {
	// Queries are the positions of the queries, ascending.
	Queries []uint32
	// Keys are the positions of the keys, that with the largest weight of a query first.
	Keys []uint32
	// Weights are the attention that the queries give.
	Weights []float32
}

// MeasureHeadsStream yields what is measured as it arrives, as FetchActivationsStream does.
func (c *Client) MeasureHeadsStream(
	ctx context.Context, request *actservev1.MeasureHeadsRequest,
) iter.Seq2[*actservev1.MeasureHeadsResponse, error] {
	return events(ctx, request, c.heads.MeasureHeads,
		func(event *actservev1.MeasureHeadsResponse) bool { return event.GetFinished() != nil })
}

// MeasureHeads measures every attention head of some layers over a corpus. It is all there, or an error; but
// an item that fails has its own, and counts in no number.
func (c *Client) MeasureHeads(
	ctx context.Context, request *actservev1.MeasureHeadsRequest,
) (*HeadsResult, error) {
	call := &headsCall{
		request: request,
		result:  &HeadsResult{Items: make([]*MeasuredItem, len(request.GetItems()))},
		chunks:  map[uint32]map[Head][]*actservev1.SparsePatternChunk{},
		metrics: map[Head]*actservev1.HeadMetrics{},
	}
	for event, err := range c.MeasureHeadsStream(ctx, request) {
		if err == nil {
			err = call.read(event)
		}
		if err != nil {
			return nil, err
		}
	}
	return call.result, nil
}

// headsCall collects the events of a call.
type headsCall struct {
	request  *actservev1.MeasureHeadsRequest
	result   *HeadsResult
	chunks   map[uint32]map[Head][]*actservev1.SparsePatternChunk // By item.
	metrics  map[Head]*actservev1.HeadMetrics
	started  bool
	finished bool
}

func (c *headsCall) read(event *actservev1.MeasureHeadsResponse) error {
	started := event.GetStarted()
	if event.GetEvent() == nil {
		return nil // Of a newer server; the contract says to skip it.
	}
	if (started == nil) != c.started || c.finished {
		return badResponse("sent an event before the call was started or after it was finished")
	}
	switch {
	case started != nil:
		c.started, c.result.CallID = true, started.GetCallId()
	case event.GetPattern() != nil:
		return c.addPattern(event.GetPattern())
	case event.GetItemFinished() != nil:
		return c.closeItem(event.GetItemFinished())
	case event.GetMetrics() != nil:
		metrics := event.GetMetrics()
		head := Head{metrics.GetLayer(), metrics.GetHead()}
		if c.metrics[head] != nil {
			return badResponse("sent head %d of layer %d twice", head.Head, head.Layer)
		}
		most := c.request.GetTopTokens()
		if more := max(len(metrics.GetTopQueryTokens()), len(metrics.GetTopKeyTokens())); more > int(most) {
			return badResponse("sent %d tokens of a head, but %d were asked for", more, most)
		}
		c.metrics[head] = metrics
	default:
		return c.finish(event.GetFinished())
	}
	return nil
}

// pending tells whether an item was asked for and is not closed yet.
func (c *headsCall) pending(index uint32) bool {
	return int64(index) < int64(len(c.result.Items)) && c.result.Items[index] == nil
}

func (c *headsCall) addPattern(chunk *actservev1.SparsePatternChunk) error {
	index := chunk.GetItemIndex()
	if c.request.GetPatterns() == nil || !c.pending(index) {
		return badResponse("sent a pattern of item %d unasked", index)
	}
	if c.chunks[index] == nil {
		c.chunks[index] = map[Head][]*actservev1.SparsePatternChunk{}
	}
	head := Head{chunk.GetLayer(), chunk.GetHead()}
	c.chunks[index][head] = append(c.chunks[index][head], chunk)
	return nil
}

func (c *headsCall) closeItem(closed *actservev1.MeasuredItem) error {
	index := closed.GetItemIndex()
	if !c.pending(index) {
		return badResponse("closed item %d twice or unasked", index)
	}
	item := &MeasuredItem{Key: c.request.GetItems()[index].GetKey()}
	c.result.Items[index] = item
	chunks := c.chunks[index]
	delete(c.chunks, index)
	if closed.GetStatus().GetCode() != 0 {
		failed := errorOfStatus(closed.GetStatus())
		if failed.RequestID == "" {
			failed.RequestID = c.result.CallID
		}
		item.Err = failed
		return nil
	}
	if closed.GetPrompt() == nil {
		return badResponse("closed item %d without its prompt", index)
	}
	item.Prompt = closed.GetPrompt()
	if c.request.GetPatterns() != nil {
		item.Patterns = map[Head]HeadPattern{}
	}
	for head, several := range chunks {
		pattern, err := patternOf(several, len(item.Prompt.GetIds()))
		if err != nil {
			return err
		}
		item.Patterns[head] = pattern
	}
	return checkPrompt(item.Prompt, false)
}

// patternOf joins the chunks of one head.
func patternOf(chunks []*actservev1.SparsePatternChunk, tokens int) (whole HeadPattern, err error) {
	for _, chunk := range chunks {
		weights, err := DecodeTensor(chunk.GetWeights())
		if err != nil {
			return whole, err
		}
		count := len(chunk.GetQueries())
		if len(weights.Shape) != 1 || weights.Shape[0] != count || len(chunk.GetKeys()) != count {
			return whole, badResponse("sent %d queries, %d keys and weights in the shape %v of one pattern",
				count, len(chunk.GetKeys()), weights.Shape)
		}
		for i, query := range chunk.GetQueries() {
			if int64(query) >= int64(tokens) || chunk.GetKeys()[i] > query {
				return whole, badResponse("sent a weight of a key that its query cannot see")
			}
		}
		whole.Queries = append(whole.Queries, chunk.GetQueries()...)
		whole.Keys = append(whole.Keys, chunk.GetKeys()...)
		whole.Weights = append(whole.Weights, weights.Data...)
	}
	return whole, nil
}

func (c *headsCall) finish(finished *actservev1.MeasureHeadsFinished) error {
	for index, item := range c.result.Items {
		if item == nil {
			return badResponse("finished without closing item %d", index)
		}
	}
	c.finished, c.result.Usage = true, finished.GetUsage()
	return c.orderHeads()
}

// orderHeads puts the heads in their order, if there are equally many of each layer that was asked for.
func (c *headsCall) orderHeads() error {
	for head := range c.metrics {
		c.result.Layers = append(c.result.Layers, head.Layer)
		c.result.Heads = max(c.result.Heads, head.Head+1)
	}
	slices.Sort(c.result.Layers)
	c.result.Layers = slices.Compact(c.result.Layers)
	if !sameLayers(c.request.GetLayers(), c.result.Layers) {
		return badResponse("measured the layers %v, but %v were asked for (none are all)",
			c.result.Layers, c.request.GetLayers())
	}
	for _, layer := range c.result.Layers {
		for head := range c.result.Heads {
			metrics := c.metrics[Head{layer, head}]
			if metrics == nil {
				return badResponse("finished without head %d of layer %d", head, layer)
			}
			c.result.Metrics = append(c.result.Metrics, metrics)
		}
	}
	for index, item := range c.result.Items {
		for head := range item.Patterns {
			if c.metrics[head] == nil {
				return badResponse("sent a pattern of item %d unasked", index)
			}
		}
	}
	return nil
}

// sameLayers tells whether these layers, which ascend, can be those that were asked for. Which one is the
// last the caller alone knows, so one that counts from there may be any.
func sameLayers(asked []int32, layers []uint32) bool {
	if len(asked) == 0 {
		return len(layers) > 0 && int64(layers[len(layers)-1]) == int64(len(layers)-1)
	}
	for _, layer := range asked {
		if _, found := slices.BinarySearch(layers, uint32(layer)); layer >= 0 && !found {
			return false
		}
	}
	return len(asked) == len(layers)
}
