package actserve_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/actserve/actserve/client/go"
	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

var (
	ctx     = context.Background()
	client  *actserve.Client
	request *actservev1.GenerateRequest
	vector  *actservev1.VectorSource
	add     *actservev1.Intervention
	name    string
)

func ExampleNew() {
	// [connect]
	tls, err := actserve.TLSFromFiles("ca.pem", "client.pem", "client.key") // Each may be "".
	if err != nil {
		log.Fatal(err)
	}
	client, err := actserve.New(actserve.Config{
		Targets: []string{"one.example.com:50051", "two.example.com:50051"}, // Replicas, in turn.
		TLS:     tls,
		Token:   "...",
		Timeout: time.Minute, // Of calls whose context has no deadline; ten minutes when unset.
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	// [/connect]
}

func ExampleClient_GenerateStream() {
	// [stream]
	for event, err := range client.GenerateStream(ctx, request) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(event.GetTokens().GetText()) // "" for other events.
	}
	// [/stream]
}

func ExampleClient_ListModels() {
	// [models]
	for model, err := range client.ListModels(ctx, &actservev1.ListModelsRequest{}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(model.GetName(), model.GetLayerCount(), model.GetWidth())
	}
	// [/models]
}

func ExamplePredictionReadout() {
	// [lens]
	lens, err := actserve.PredictionReadout("lens", "last", 3, "resid_post.10", "final_norm")
	if err != nil {
		log.Fatal(err)
	}
	result, err := client.FetchActivations(ctx, &actservev1.FetchActivationsRequest{
		Items:    []*actservev1.FetchItem{{Prompt: actserve.TextPrompt("The capital of France is")}},
		Readouts: []*actservev1.Readout{lens},
		FailFast: true,
	})
	if err != nil {
		log.Fatal(err)
	}
	early, err := result.Items[0].Readouts.Predictions("lens", "resid_post.10")
	if err != nil {
		log.Fatal(err)
	}
	for i, text := range early.TopTexts {
		fmt.Println(text, early.TopLogprobs.Data[i])
	}
	// [/lens]
}

func ExampleClient_MakeSteeringVector() {
	// [vectors]
	joy, err := client.MakeSteeringVector(ctx, &actservev1.MakeSteeringVectorRequest{
		SteeringVectorId: "joy",
		Sites:            []*actservev1.Site{actserve.Must(actserve.ParseSite("resid_post.15"))},
		Examples: &actservev1.MakeSteeringVectorRequest_Prompts{Prompts: &actservev1.ContrastingPrompts{
			Positive: []*actservev1.Prompt{actserve.TextPrompt("I loved it, wonderful!")},
			Negative: []*actservev1.Prompt{actserve.TextPrompt("I hated it, terrible!")},
		}},
	})
	if err != nil {
		log.Fatal(err)
	}
	vector := actserve.StoredVector(joy.GetSteeringVector().GetName())
	add, err := actserve.Add(vector, proto.Float32(2), "resid_post.15")
	if err != nil {
		log.Fatal(err)
	}
	// [/vectors]
	_ = add
}

func ExampleAbove() {
	// [condition]
	probe, err := actserve.LinearProbe("resid_post.8", vector)
	if err != nil {
		log.Fatal(err)
	}
	add.When = actserve.Above(probe, 0.5)
	// [/condition]
}

func ExampleFeatureReadout() {
	// [features]
	for dictionary, err := range client.ListDictionaries(ctx, &actservev1.ListDictionariesRequest{}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(dictionary.GetName(), dictionary.GetFeatures(), dictionary.GetCheck().GetExplained())
	}
	top, err := actserve.FeatureReadout("top", "last", name, proto.Uint32(5), "resid_post.20")
	if err != nil {
		log.Fatal(err)
	}
	result, err := client.FetchActivations(ctx, &actservev1.FetchActivationsRequest{
		Items:    []*actservev1.FetchItem{{Prompt: actserve.TextPrompt("Rain fell on the lake")}},
		Readouts: []*actservev1.Readout{top},
		FailFast: true,
	})
	if err != nil {
		log.Fatal(err)
	}
	features, err := result.Items[0].Readouts.Rows("top", "resid_post.20")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(features.Indices, features.Data) // The five largest, largest first.
	// [/features]
}

func ExampleChangeFeatures() {
	// [changes]
	changes := []*actservev1.FeatureChange{actserve.SetFeature(2178, 60), actserve.ScaleFeature(7, 0)}
	steer, err := actserve.ChangeFeatures(name, changes, "resid_post.20")
	if err != nil {
		log.Fatal(err)
	}
	effects, err := client.LogitEffects(ctx, name, []uint32{2178}, 5)
	if err != nil {
		log.Fatal(err)
	}
	for _, token := range effects[0].Top {
		fmt.Println(token.Text, token.Effect)
	}
	// [/changes]
	_ = steer
}

func ExampleClient_MeasureHeads() {
	// [heads]
	measured, err := client.MeasureHeads(ctx, &actservev1.MeasureHeadsRequest{
		Items: []*actservev1.FetchItem{{Prompt: actserve.TextPrompt("one two three one two three")}},
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, head := range measured.Metrics {
		fmt.Println(head.GetLayer(), head.GetHead(), head.GetInduction(), head.GetPreviousToken())
	}
	// [/heads]
}

func ExampleClient_WaitForAttributionGraph() {
	// [graphs]
	begun, err := client.CreateAttributionGraph(ctx, &actservev1.CreateAttributionGraphRequest{
		Prompt:   actserve.TextPrompt("The capital of France is"),
		Settings: &actservev1.AttributionSettings{MaxFeatureNodes: proto.Uint32(300)},
	})
	if err != nil {
		log.Fatal(err)
	}
	graph, err := client.WaitForAttributionGraph(ctx, begun.GetAttributionGraph().GetName())
	if err != nil {
		log.Fatal(err)
	}
	for i, weight := range graph.Weights {
		fmt.Println(graph.Nodes[graph.Sources[i]], graph.Nodes[graph.Targets[i]], weight)
	}
	// [/graphs]
}

func ExampleClient_RunSweep() {
	// [sweep]
	add, err := actserve.Add(vector, nil) // The lists of the variant say how much, and where.
	if err != nil {
		log.Fatal(err)
	}
	result, err := client.RunSweep(ctx, &actservev1.RunSweepRequest{
		Prompts: []*actservev1.SweepPrompt{{Prompt: actserve.TextPrompt("I think the movie was")}},
		Variants: []*actservev1.SweepVariant{{
			Interventions: []*actservev1.Intervention{add},
			Coefficients:  []float32{0, 2, 4},
			Sites: []*actservev1.Site{
				actserve.Must(actserve.ParseSite("resid_post.10")),
				actserve.Must(actserve.ParseSite("resid_post.15")),
			},
		}},
		Sampling: &actservev1.SamplingParams{MaxTokens: proto.Uint32(20)},
		Answers:  []*actservev1.SweepAnswer{{Name: "great", Text: " great"}},
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, cell := range result.Cells {
		if cell.Err != nil {
			log.Print(cell.Err)
			continue
		}
		fmt.Println(cell.GetCoefficientIndex(), cell.GetSiteIndex(), cell.GetText(), cell.GetAnswerLogprobs())
	}
	// [/sweep]
}

func ExampleError() {
	_, err := client.Generate(ctx, request)
	// [errors]
	var failed *actserve.Error
	switch {
	case errors.Is(err, context.Canceled):
		return
	case errors.As(err, &failed) && failed.Reason == "PROMPT_TOO_LONG":
		log.Printf("%s allows %s tokens", failed.Field, failed.Metadata["limit"])
	case err != nil:
		log.Fatal(err)
	}
	// [/errors]
}

func ExampleClient_Conn() {
	// [raw]
	weights := actservev1.NewWeightServiceClient(client.Conn())
	stream, err := weights.ReadTokenRows(ctx, &actservev1.ReadTokenRowsRequest{
		Matrix: actservev1.TokenMatrix_TOKEN_MATRIX_UNEMBEDDING, TokenIds: []uint32{42},
	})
	// [/raw]
	_, _ = stream, err
}
