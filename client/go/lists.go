package actserve

import (
	"context"
	"iter"

	"google.golang.org/protobuf/proto"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

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

func pages[T any](token string, fetch func(token string) ([]T, string, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var nothing T
		for token := token; ; {
			found, next, err := fetch(token)
			if err != nil {
				yield(nothing, err)
				return
			}
			if next != "" && next == token {
				yield(nothing, badResponse("named the same page twice, %q", next))
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
