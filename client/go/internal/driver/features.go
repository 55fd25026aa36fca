package main

import (
	"context"
	"maps"
	"slices"

	"github.com/actserve/actserve/client/go"
	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// numbers are by feature.
type numbers map[uint32]float32

func (q *question) buildFeatures() (any, error) {
	changes := []*actservev1.FeatureChange{}
	for _, kind := range []struct {
		of     numbers
		change func(uint32, float32) *actservev1.FeatureChange
	}{
		{q.Values, actserve.SetFeature},
		{q.Additions, actserve.AddToFeature},
		{q.Factors, actserve.ScaleFeature},
	} {
		for _, index := range slices.Sorted(maps.Keys(kind.of)) {
			changes = append(changes, kind.change(index, kind.of[index]))
		}
	}
	return actserve.ChangeFeatures(q.Dictionary, changes, q.Sites...)
}

func (q *question) logitEffects(ctx context.Context, client *actserve.Client) (any, error) {
	found, err := client.LogitEffects(ctx, q.Dictionary, q.Features, q.K)
	if err != nil {
		return nil, err
	}
	effects := []object{}
	for _, each := range found {
		effects = append(effects, object{
			"feature": each.Feature, "top": tokenEffects(each.Top), "bottom": tokenEffects(each.Bottom),
		})
	}
	return object{"effects": effects}, nil
}

func tokenEffects(all []actserve.TokenEffect) []object {
	told := []object{}
	for _, each := range all {
		effect := actserve.Tensor{Shape: []int{1}, Data: []float32{each.Effect}}
		told = append(told, array(effect, object{"id": each.ID, "text": each.Text}))
	}
	return told
}
