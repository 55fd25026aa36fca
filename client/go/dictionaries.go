package actserve

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash/crc32"
	"iter"

	"google.golang.org/protobuf/proto"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// GetDictionary returns one dictionary, without its matrices.
func (c *Client) GetDictionary(
	ctx context.Context, request *actservev1.GetDictionaryRequest,
) (*actservev1.GetDictionaryResponse, error) {
	return c.dictionaries.GetDictionary(ctx, request)
}

// ListDictionaries yields the dictionaries that the server has, as ListModels does.
func (c *Client) ListDictionaries(
	ctx context.Context, request *actservev1.ListDictionariesRequest,
) iter.Seq2[*actservev1.Dictionary, error] {
	return pages(request.GetPageToken(), func(token string) ([]*actservev1.Dictionary, string, error) {
		page := clone(request)
		page.PageToken = token
		answer, err := c.dictionaries.ListDictionaries(ctx, page)
		return answer.GetDictionaries(), answer.GetNextPageToken(), err
	})
}

// DeleteDictionary deletes a dictionary and its labels. Runs that use it keep it.
func (c *Client) DeleteDictionary(
	ctx context.Context, request *actservev1.DeleteDictionaryRequest,
) (*actservev1.DeleteDictionaryResponse, error) {
	return c.dictionaries.DeleteDictionary(ctx, request)
}

// SetFeatureLabels says what features of a dictionary stand for.
func (c *Client) SetFeatureLabels(
	ctx context.Context, request *actservev1.SetFeatureLabelsRequest,
) (*actservev1.SetFeatureLabelsResponse, error) {
	return c.dictionaries.SetFeatureLabels(ctx, request)
}

// ListFeatureLabels yields what features of a dictionary stand for, by index, as ListModels does.
func (c *Client) ListFeatureLabels(
	ctx context.Context, request *actservev1.ListFeatureLabelsRequest,
) iter.Seq2[*actservev1.FeatureLabel, error] {
	return pages(request.GetPageToken(), func(token string) ([]*actservev1.FeatureLabel, string, error) {
		page := clone(request)
		page.PageToken = token
		answer, err := c.dictionaries.ListFeatureLabels(ctx, page)
		return answer.GetLabels(), answer.GetNextPageToken(), err
	})
}

// UploadDictionary stores a dictionary: it begins the upload, sends the bytes of each of the request's
// matrices, and finishes it. Without a request_id the upload has one that follows from what is
// uploaded; so the same call, made again after it was cut, goes on where it was, in another program
// too. The request stays as it is, and the deadline of the client holds for each of its calls.
func (c *Client) UploadDictionary(
	ctx context.Context, request *actservev1.BeginUploadRequest, contents [][]byte,
) (*actservev1.Dictionary, error) {
	if len(contents) != len(request.GetMatrices()) {
		return nil, invalid("FIELD_INVALID", "matrices", "the bytes of %d matrices are given for %d; give those of each",
			len(contents), len(request.GetMatrices()))
	}
	if request.GetRequestId() == "" {
		id, err := uploadID(request, contents)
		if err != nil {
			return nil, invalid("FIELD_INVALID", "dictionary", "it cannot be written: %v", err)
		}
		request = clone(request)
		request.RequestId = id
	}
	begun, err := c.dictionaries.BeginUpload(ctx, request)
	if err != nil {
		return nil, err
	}
	if len(begun.GetReceivedBytes()) != len(contents) || begun.GetMaxChunkBytes() == 0 {
		return nil, badResponse("began an upload of %d matrices, not of %d, in chunks of %d bytes",
			len(begun.GetReceivedBytes()), len(contents), begun.GetMaxChunkBytes())
	}
	for index, received := range begun.GetReceivedBytes() {
		if received > uint64(len(contents[index])) {
			return nil, badResponse("has %d bytes of a matrix of %d", received, len(contents[index]))
		}
	}
	for index, content := range contents {
		if err := c.uploadMatrix(ctx, begun, uint32(index), content); err != nil {
			return nil, err
		}
	}
	answer, err := c.dictionaries.FinishUpload(ctx, &actservev1.FinishUploadRequest{Upload: begun.GetUpload()})
	return answer.GetDictionary(), err
}

func (c *Client) uploadMatrix(
	ctx context.Context, begun *actservev1.BeginUploadResponse, index uint32, content []byte,
) error {
	size := uint64(len(content))
	offset := begun.GetReceivedBytes()[index]
	for offset < size {
		end := min(offset+uint64(begun.GetMaxChunkBytes()), size)
		chunk := content[offset:end]
		answer, err := c.dictionaries.UploadChunk(ctx, &actservev1.UploadChunkRequest{
			Upload:      begun.GetUpload(),
			MatrixIndex: proto.Uint32(index),
			Offset:      proto.Uint64(offset),
			Content:     chunk,
			Crc32C:      proto.Uint32(crc32.Checksum(chunk, castagnoli)),
		})
		if err != nil {
			return err
		}
		received := answer.GetReceivedBytes()
		if received <= offset || received > size {
			return badResponse("has %d bytes of a matrix of %d after a chunk from %d on", received, size, offset)
		}
		offset = received
	}
	return nil
}

func uploadID(request *actservev1.BeginUploadRequest, contents [][]byte) (string, error) {
	written, err := proto.MarshalOptions{Deterministic: true}.Marshal(request)
	if err != nil {
		return "", err
	}
	digest := sha256.New()
	digest.Write(written)
	for _, content := range contents {
		digest.Write(content)
	}
	return hex.EncodeToString(digest.Sum(nil)), nil
}
