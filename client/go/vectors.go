package actserve

import (
	"context"
	"crypto/rand"
	"iter"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// CreateSteeringVector stores a vector. Without a request_id the call has one of its own, by which it
// makes nothing twice when it is made again; the request stays as it is.
func (c *Client) CreateSteeringVector(
	ctx context.Context, request *actservev1.CreateSteeringVectorRequest,
) (*actservev1.CreateSteeringVectorResponse, error) {
	if request.GetRequestId() == "" {
		request = clone(request)
		request.RequestId = rand.Text()
	}
	return c.vectors.CreateSteeringVector(ctx, request)
}

// MakeSteeringVector makes a vector of examples of two kinds, and stores it. Its request_id is as that
// of CreateSteeringVector.
func (c *Client) MakeSteeringVector(
	ctx context.Context, request *actservev1.MakeSteeringVectorRequest,
) (*actservev1.MakeSteeringVectorResponse, error) {
	if request.GetRequestId() == "" {
		request = clone(request)
		request.RequestId = rand.Text()
	}
	return c.vectors.MakeSteeringVector(ctx, request)
}

// CombineSteeringVectors computes a vector from stored ones, and stores it. Its request_id is as that
// of CreateSteeringVector.
func (c *Client) CombineSteeringVectors(
	ctx context.Context, request *actservev1.CombineSteeringVectorsRequest,
) (*actservev1.CombineSteeringVectorsResponse, error) {
	if request.GetRequestId() == "" {
		request = clone(request)
		request.RequestId = rand.Text()
	}
	return c.vectors.CombineSteeringVectors(ctx, request)
}

// GetSteeringVector returns one vector; [DecodeTensor] reads its elements, if they were asked for.
func (c *Client) GetSteeringVector(
	ctx context.Context, request *actservev1.GetSteeringVectorRequest,
) (*actservev1.GetSteeringVectorResponse, error) {
	return c.vectors.GetSteeringVector(ctx, request)
}

// ListSteeringVectors yields the stored vectors that have some labels, as ListModels does.
func (c *Client) ListSteeringVectors(
	ctx context.Context, request *actservev1.ListSteeringVectorsRequest,
) iter.Seq2[*actservev1.SteeringVector, error] {
	return pages(request.GetPageToken(), func(token string) ([]*actservev1.SteeringVector, string, error) {
		page := clone(request)
		page.PageToken = token
		answer, err := c.vectors.ListSteeringVectors(ctx, page)
		return answer.GetSteeringVectors(), answer.GetNextPageToken(), err
	})
}

// UpdateSteeringVector replaces the labels of a vector.
func (c *Client) UpdateSteeringVector(
	ctx context.Context, request *actservev1.UpdateSteeringVectorRequest,
) (*actservev1.UpdateSteeringVectorResponse, error) {
	return c.vectors.UpdateSteeringVector(ctx, request)
}

// DeleteSteeringVector deletes a vector. Runs that use it keep it.
func (c *Client) DeleteSteeringVector(
	ctx context.Context, request *actservev1.DeleteSteeringVectorRequest,
) (*actservev1.DeleteSteeringVectorResponse, error) {
	return c.vectors.DeleteSteeringVector(ctx, request)
}
