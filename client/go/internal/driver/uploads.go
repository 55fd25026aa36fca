package main

import (
	"context"
	"encoding/hex"

	"github.com/actserve/actserve/client/go"
	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// matrix is one of a dictionary, as a question gives it.
type matrix struct {
	Role  string   `json:"role"`
	Shape []uint32 `json:"shape"`
	Data  string   `json:"data"`
}

func (q *question) upload(ctx context.Context, client *actserve.Client) (any, error) {
	site, err := actserve.ParseSite(q.Site)
	if err != nil {
		return nil, err
	}
	request := &actservev1.BeginUploadRequest{
		Model:        "models/" + q.Client.Model,
		DictionaryId: q.Name,
		Dictionary: &actservev1.Dictionary{
			Kind:       actservev1.DictionaryKind_DICTIONARY_KIND_SPARSE_AUTOENCODER,
			Site:       site,
			Features:   q.Matrices[0].Shape[0],
			Activation: &actservev1.Dictionary_Relu{Relu: &actservev1.ReluActivation{}},
		},
	}
	contents := [][]byte{}
	for _, given := range q.Matrices {
		request.Matrices = append(request.Matrices, &actservev1.DictionaryMatrix{
			Role:        actservev1.MatrixRole(actservev1.MatrixRole_value["MATRIX_ROLE_"+given.Role]),
			ElementType: actservev1.ElementType_ELEMENT_TYPE_F32,
			Shape:       given.Shape,
		})
		content, err := hex.DecodeString(given.Data)
		if err != nil {
			return nil, err
		}
		contents = append(contents, content)
	}
	made, err := client.UploadDictionary(ctx, request, contents)
	return object{"name": made.GetName()}, err
}
