package main

import (
	"context"

	"github.com/actserve/actserve/client/go"
	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// graph begins a graph, and waits for it.
func (q *question) graph(ctx context.Context, client *actserve.Client) (any, error) {
	begun, err := client.CreateAttributionGraph(ctx,
		request(q, &actservev1.CreateAttributionGraphRequest{}))
	if err != nil {
		return nil, err
	}
	return traced(client.WaitForAttributionGraph(ctx, begun.GetAttributionGraph().GetName()))
}

func traced(graph *actserve.GraphResult, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	nodes, influences, values := []object{}, []float32{}, []float32{}
	for _, node := range graph.Nodes {
		kind, of, value := "", []uint32{}, float32(0)
		switch told := node.GetKind().(type) {
		case *actservev1.AttributionNode_Embedding:
			kind, of = "embedding", []uint32{told.Embedding.GetTokenId()}
		case *actservev1.AttributionNode_Neuron:
			kind, of = "neuron", []uint32{told.Neuron.GetLayer(), told.Neuron.GetNeuron()}
			value = told.Neuron.GetActivation()
		case *actservev1.AttributionNode_Feature:
			kind = "feature"
			of = []uint32{told.Feature.GetDictionaryIndex(), told.Feature.GetFeatureIndex()}
			value = told.Feature.GetActivation()
		case *actservev1.AttributionNode_ReconstructionError:
			kind, of = "error", []uint32{told.ReconstructionError.GetDictionaryIndex()}
		case *actservev1.AttributionNode_Logit:
			kind, of = "logit", []uint32{told.Logit.GetTokenId()}
			value = told.Logit.GetProbability()
		}
		nodes = append(nodes, object{"kind": kind, "of": of, "position": node.GetPosition()})
		influences, values = append(influences, node.GetInfluence()), append(values, value)
	}
	vector := func(values []float32) object {
		return array(actserve.Tensor{Shape: []int{len(values)}, Data: values}, object{})
	}
	return object{
		"nodes": nodes, "influences": vector(influences), "activations": vector(values),
		"sources": list(graph.Sources), "targets": list(graph.Targets), "weights": vector(graph.Weights),
	}, nil
}
