package main

import (
	"fmt"

	"github.com/actserve/actserve/client/go"
	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

var means = map[string]func(*actservev1.HeadMetrics) float32{
	"previous_token":    (*actservev1.HeadMetrics).GetPreviousToken,
	"current_token":     (*actservev1.HeadMetrics).GetCurrentToken,
	"first_token":       (*actservev1.HeadMetrics).GetFirstToken,
	"induction":         (*actservev1.HeadMetrics).GetInduction,
	"duplicate_token":   (*actservev1.HeadMetrics).GetDuplicateToken,
	"entropy":           (*actservev1.HeadMetrics).GetEntropy,
	"distance":          (*actservev1.HeadMetrics).GetDistance,
	"distance_variance": (*actservev1.HeadMetrics).GetDistanceVariance,
}

func measured(result *actserve.HeadsResult, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	shape := []int{len(result.Layers), int(result.Heads)}
	told := object{}
	for name, of := range means {
		values := []float32{}
		for _, each := range result.Metrics {
			values = append(values, of(each))
		}
		told[name] = array(actserve.Tensor{Shape: shape, Data: values}, object{})
	}
	queryTokens, keyTokens := []any{}, []any{}
	for _, each := range result.Metrics {
		queryTokens = append(queryTokens, tokenWeights(each.GetTopQueryTokens()))
		keyTokens = append(keyTokens, tokenWeights(each.GetTopKeyTokens()))
	}
	items := []object{}
	for index, item := range result.Items {
		written := object{"index": index, "key": item.Key}
		if item.Err != nil {
			written["error"] = toError(item.Err)
		} else {
			written["token_ids"] = list(item.Prompt.GetIds())
			written["patterns"] = patterns(item.Patterns)
		}
		items = append(items, written)
	}
	return object{
		"call_id": result.CallID, "layers": result.Layers, "queries": result.Metrics[0].GetQueries(),
		"means": told, "query_tokens": queryTokens, "key_tokens": keyTokens, "items": items,
	}, nil
}

func tokenWeights(all []*actservev1.TokenWeight) object {
	ids, texts, weights := []uint32{}, []string{}, []float32{}
	for _, each := range all {
		ids = append(ids, each.GetTokenId())
		texts = append(texts, each.GetText())
		weights = append(weights, each.GetWeight())
	}
	whole := actserve.Tensor{Shape: []int{len(weights)}, Data: weights}
	return array(whole, object{"ids": ids, "texts": texts})
}

func patterns(all map[actserve.Head]actserve.HeadPattern) object {
	told := object{}
	for head, pattern := range all {
		weights := actserve.Tensor{Shape: []int{len(pattern.Weights)}, Data: pattern.Weights}
		told[fmt.Sprintf("%d.%d", head.Layer, head.Head)] = array(weights, object{
			"queries": list(pattern.Queries), "keys": list(pattern.Keys),
		})
	}
	return told
}
