package actserve

import (
	"context"
	"io"
	"iter"

	"google.golang.org/grpc"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// FetchActivationsStream yields the events of a call as they arrive. The call is made when the loop
// begins, anew for each loop; leaving it, or cancelling ctx, cancels the call. An error is the last
// thing that is yielded. A stream that ends without its event `finished` ends with
// [ReasonStreamCutShort]. Skip events that you do not know.
func (c *Client) FetchActivationsStream(
	ctx context.Context, request *actservev1.FetchActivationsRequest,
) iter.Seq2[*actservev1.FetchActivationsResponse, error] {
	return events(ctx, request, c.generation.FetchActivations,
		func(event *actservev1.FetchActivationsResponse) bool { return event.GetFinished() != nil })
}

// GenerateStream yields the events of a generation as they arrive, as FetchActivationsStream does.
func (c *Client) GenerateStream(
	ctx context.Context, request *actservev1.GenerateRequest,
) iter.Seq2[*actservev1.GenerateResponse, error] {
	return events(ctx, request, c.generation.Generate,
		func(event *actservev1.GenerateResponse) bool { return event.GetFinished() != nil })
}

// ExplainActivationsStream yields explanations of rows as they are written, as
// FetchActivationsStream does.
func (c *Client) ExplainActivationsStream(
	ctx context.Context, request *actservev1.ExplainActivationsRequest,
) iter.Seq2[*actservev1.ExplanationEvent, error] {
	return explanationEvents(ctx, request, c.explanations.ExplainActivations,
		(*actservev1.ExplainActivationsResponse).GetEvent)
}

// ExplainTextStream yields explanations of the tokens of a prompt as they are written, as
// FetchActivationsStream does.
func (c *Client) ExplainTextStream(
	ctx context.Context, request *actservev1.ExplainTextRequest,
) iter.Seq2[*actservev1.ExplanationEvent, error] {
	return explanationEvents(ctx, request, c.explanations.ExplainText,
		(*actservev1.ExplainTextResponse).GetEvent)
}

// CompareActivationsStream yields explanations of how rows differ as they are written, as
// FetchActivationsStream does.
func (c *Client) CompareActivationsStream(
	ctx context.Context, request *actservev1.CompareActivationsRequest,
) iter.Seq2[*actservev1.ExplanationEvent, error] {
	return explanationEvents(ctx, request, c.explanations.CompareActivations,
		(*actservev1.CompareActivationsResponse).GetEvent)
}

// ReconstructActivationsStream yields rows that are made from texts, as FetchActivationsStream does.
func (c *Client) ReconstructActivationsStream(
	ctx context.Context, request *actservev1.ReconstructActivationsRequest,
) iter.Seq2[*actservev1.ReconstructActivationsResponse, error] {
	return events(ctx, request, c.explanations.ReconstructActivations,
		func(event *actservev1.ReconstructActivationsResponse) bool { return event.GetFinished() != nil })
}

// RunSweepStream yields the cells of a sweep as they are done, as FetchActivationsStream does. What is
// lost with a connection can go on: a request with the resume_token of the last cell that came has the
// others; [Client.RunSweep] does that by itself.
func (c *Client) RunSweepStream(
	ctx context.Context, request *actservev1.RunSweepRequest,
) iter.Seq2[*actservev1.RunSweepResponse, error] {
	return events(ctx, request, c.sweeps.RunSweep,
		func(event *actservev1.RunSweepResponse) bool { return event.GetFinished() != nil })
}

// ReplayMonitorsStream yields the scores of items as they are done, as FetchActivationsStream does.
func (c *Client) ReplayMonitorsStream(
	ctx context.Context, request *actservev1.ReplayMonitorsRequest,
) iter.Seq2[*actservev1.ReplayMonitorsResponse, error] {
	return events(ctx, request, c.monitors.ReplayMonitors,
		func(event *actservev1.ReplayMonitorsResponse) bool { return event.GetFinished() != nil })
}

// opener is a method of a stub that answers with a stream.
type opener[Request, Event any] func(
	context.Context, *Request, ...grpc.CallOption,
) (grpc.ServerStreamingClient[Event], error)

func events[Request, Event any](
	ctx context.Context, request *Request, open opener[Request, Event], isLast func(*Event) bool,
) iter.Seq2[*Event, error] {
	return func(yield func(*Event, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // Leaving the loop cancels the call.
		stream, err := open(ctx, request)
		finished := false
		for err == nil {
			var event *Event
			if event, err = stream.Recv(); err == nil {
				finished = finished || isLast(event)
				if !yield(event, nil) {
					return
				}
			}
		}
		if err != io.EOF {
			yield(nil, err)
		} else if !finished {
			yield(nil, cutShort())
		}
	}
}

func explanationEvents[Request, Event any](
	ctx context.Context, request *Request, open opener[Request, Event],
	inside func(*Event) *actservev1.ExplanationEvent,
) iter.Seq2[*actservev1.ExplanationEvent, error] {
	isLast := func(event *Event) bool { return inside(event).GetFinished() != nil }
	return func(yield func(*actservev1.ExplanationEvent, error) bool) {
		for event, err := range events(ctx, request, open, isLast) {
			if !yield(inside(event), err) {
				return
			}
		}
	}
}
