package actserve

import (
	"context"
	"io"
	"iter"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

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

// ListModels yields the served models, page by page. An error is the last thing that is yielded.
func (c *Client) ListModels(
	ctx context.Context, request *actservev1.ListModelsRequest,
) iter.Seq2[*actservev1.Model, error] {
	return pages(request.GetPageToken(), func(token string) ([]*actservev1.Model, string, error) {
		page := clone(request)
		page.PageToken = token
		answer, err := c.models.ListModels(ctx, page)
		return answer.GetModels(), answer.GetNextPageToken(), err
	})
}

// ListKeptActivations yields what the caller's tenant keeps on the server, as ListModels does.
func (c *Client) ListKeptActivations(
	ctx context.Context, request *actservev1.ListKeptActivationsRequest,
) iter.Seq2[*actservev1.KeptActivations, error] {
	return pages(request.GetPageToken(), func(token string) ([]*actservev1.KeptActivations, string, error) {
		page := clone(request)
		page.PageToken = token
		answer, err := c.kept.ListKeptActivations(ctx, page)
		return answer.GetKeptActivations(), answer.GetNextPageToken(), err
	})
}

// ListNlas yields the natural language autoencoders of a model, as ListModels does.
func (c *Client) ListNlas(
	ctx context.Context, request *actservev1.ListNlasRequest,
) iter.Seq2[*actservev1.Nla, error] {
	return pages(request.GetPageToken(), func(token string) ([]*actservev1.Nla, string, error) {
		page := clone(request)
		page.PageToken = token
		answer, err := c.explanations.ListNlas(ctx, page)
		return answer.GetNlas(), answer.GetNextPageToken(), err
	})
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

func pages[T any](token string, fetch func(token string) ([]T, string, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var nothing T
		for token := token; ; {
			found, next, err := fetch(token)
			if err != nil {
				yield(nothing, err)
				return
			}
			for _, each := range found {
				if !yield(each, nil) {
					return
				}
			}
			if next == "" {
				return
			}
			if next == token {
				yield(nothing, badResponse("named the same page twice, %q", next))
				return
			}
			token = next
		}
	}
}

// clone returns a copy of a request that may be changed.
func clone[Request any, Message interface {
	*Request
	proto.Message
}](request Message) Message {
	if request == nil {
		return new(Request)
	}
	return proto.Clone(request).(Message)
}
