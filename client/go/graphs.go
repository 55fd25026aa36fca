package actserve

import (
	"context"
	"crypto/rand"
	"iter"
	"time"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// graphPoll is how often WaitForAttributionGraph looks whether a graph is made.
const graphPoll = time.Second

// GraphResult is an attribution graph.
type GraphResult struct {
	// Nodes are in the order in which they are computed: an edge leads from one to a later one.
	Nodes []*actservev1.AttributionNode
	// Sources are, of each edge, the index of the node that it comes from.
	Sources []uint32
	// Targets are, of each edge, the index of the node that it goes to.
	Targets []uint32
	// Weights are what the source of each edge adds to its target, of either sign, in the units of
	// [actservev1.AttributionEdges].
	Weights []float32
}

// CreateAttributionGraph begins a graph of what the next token of a prompt comes from, and returns before
// it is made; [Client.WaitForAttributionGraph] waits for it. Its request_id is as that of
// CreateSteeringVector.
func (c *Client) CreateAttributionGraph(
	ctx context.Context, request *actservev1.CreateAttributionGraphRequest,
) (*actservev1.CreateAttributionGraphResponse, error) {
	if request.GetRequestId() == "" {
		request = clone(request)
		request.RequestId = rand.Text()
	}
	return c.graphs.CreateAttributionGraph(ctx, request)
}

// GetAttributionGraph returns what a graph is of and how far it has come, without nodes and edges.
func (c *Client) GetAttributionGraph(
	ctx context.Context, request *actservev1.GetAttributionGraphRequest,
) (*actservev1.GetAttributionGraphResponse, error) {
	return c.graphs.GetAttributionGraph(ctx, request)
}

// ListAttributionGraphs yields the graphs of a model, without nodes and edges, as ListModels does.
func (c *Client) ListAttributionGraphs(
	ctx context.Context, request *actservev1.ListAttributionGraphsRequest,
) iter.Seq2[*actservev1.AttributionGraph, error] {
	return pages(request.GetPageToken(), func(token string) ([]*actservev1.AttributionGraph, string, error) {
		page := clone(request)
		page.PageToken = token
		answer, err := c.graphs.ListAttributionGraphs(ctx, page)
		return answer.GetAttributionGraphs(), answer.GetNextPageToken(), err
	})
}

// DeleteAttributionGraph deletes a graph, and ends the work on it.
func (c *Client) DeleteAttributionGraph(
	ctx context.Context, request *actservev1.DeleteAttributionGraphRequest,
) (*actservev1.DeleteAttributionGraphResponse, error) {
	return c.graphs.DeleteAttributionGraph(ctx, request)
}

// WaitForAttributionGraph returns a graph once it is made, or why it has not been. It waits for as long as
// that takes, also over connections that are lost: give ctx a deadline for less.
func (c *Client) WaitForAttributionGraph(ctx context.Context, name string) (*GraphResult, error) {
	ticker := time.NewTicker(graphPoll)
	defer ticker.Stop()
	for {
		answer, err := c.GetAttributionGraph(ctx, &actservev1.GetAttributionGraphRequest{Name: name})
		if err != nil {
			return nil, err
		}
		work := answer.GetAttributionGraph().GetWork()
		switch work.GetState() {
		case actservev1.WorkState_WORK_STATE_WAITING, actservev1.WorkState_WORK_STATE_RUNNING:
		case actservev1.WorkState_WORK_STATE_FAILED:
			return nil, errorOfWork(work)
		default:
			return c.WatchAttributionGraph(ctx, &actservev1.WatchAttributionGraphRequest{Name: name})
		}
		select {
		case <-ctx.Done():
			return nil, errorOf(ctx.Err())
		case <-ticker.C:
		}
	}
}

// WatchAttributionGraphStream yields how far a graph has come, and then its nodes and edges, as
// FetchActivationsStream does.
func (c *Client) WatchAttributionGraphStream(
	ctx context.Context, request *actservev1.WatchAttributionGraphRequest,
) iter.Seq2[*actservev1.WatchAttributionGraphResponse, error] {
	return events(ctx, request, c.graphs.WatchAttributionGraph,
		func(event *actservev1.WatchAttributionGraphResponse) bool { return event.GetFinished() != nil })
}

// WatchAttributionGraph returns a graph once it is made, or why it has not been, over one connection. The
// graph is all there, or there is an error.
func (c *Client) WatchAttributionGraph(
	ctx context.Context, request *actservev1.WatchAttributionGraphRequest,
) (*GraphResult, error) {
	call := &graphCall{result: &GraphResult{}}
	for event, err := range c.WatchAttributionGraphStream(ctx, request) {
		if err == nil {
			err = call.read(event)
		}
		if err != nil {
			return nil, err
		}
	}
	return call.result, nil
}

// graphCall collects the events of a call.
type graphCall struct {
	result   *GraphResult
	work     *actservev1.Work // As it was last told.
	finished bool
}

func (c *graphCall) read(event *actservev1.WatchAttributionGraphResponse) error {
	if event.GetEvent() == nil {
		return nil // Of a newer server; the contract says to skip it.
	}
	if c.finished {
		return badResponse("went on with a graph after it had finished")
	}
	switch {
	case event.GetProgress() != nil:
		c.work = event.GetProgress()
	case event.GetNodes() != nil:
		if len(c.result.Sources) > 0 {
			return badResponse("sent nodes of a graph after its edges")
		}
		c.result.Nodes = append(c.result.Nodes, event.GetNodes().GetNodes()...)
	case event.GetEdges() != nil:
		return c.addEdges(event.GetEdges())
	default:
		c.finished = true
		if c.work.GetState() != actservev1.WorkState_WORK_STATE_SUCCEEDED {
			return errorOfWork(c.work)
		}
	}
	return nil
}

func (c *graphCall) addEdges(edges *actservev1.AttributionEdges) error {
	weights, err := DecodeTensor(edges.GetWeights())
	if err != nil {
		return err
	}
	count := len(edges.GetSources())
	if len(weights.Shape) != 1 || weights.Shape[0] != count || len(edges.GetTargets()) != count {
		return badResponse("sent %d sources, %d targets and weights in the shape %v of edges",
			count, len(edges.GetTargets()), weights.Shape)
	}
	for i, target := range edges.GetTargets() {
		source := edges.GetSources()[i]
		if source >= target || int64(target) >= int64(len(c.result.Nodes)) {
			return badResponse("sent an edge from node %d to node %d of %d", source, target, len(c.result.Nodes))
		}
	}
	c.result.Sources = append(c.result.Sources, edges.GetSources()...)
	c.result.Targets = append(c.result.Targets, edges.GetTargets()...)
	c.result.Weights = append(c.result.Weights, weights.Data...)
	return nil
}
