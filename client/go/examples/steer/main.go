// Steer makes a vector of two texts, and lets the model write with and without it.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/actserve/actserve/client/go"
	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

const site = "resid_post.15"

func main() {
	log.SetFlags(0)
	target := "localhost:50051"
	if len(os.Args) > 1 {
		target = os.Args[1]
	}
	if err := steer(context.Background(), target); err != nil {
		log.Fatal(err)
	}
}

func steer(ctx context.Context, target string) error {
	client, err := actserve.New(actserve.Config{Targets: []string{target}})
	if err != nil {
		return err
	}
	defer client.Close()
	mood, err := difference(ctx, client, "I loved it, wonderful!", "I hated it, terrible!")
	if err != nil {
		return err
	}
	plain, err := write(ctx, client)
	if err != nil {
		return err
	}
	// [steer]
	add, err := actserve.AddVector(site, mood, 2)
	if err != nil {
		return err
	}
	steered, err := write(ctx, client, add)
	if err != nil {
		return err
	}
	// [/steer]
	fmt.Println("plain:", quoted(plain))
	fmt.Println("steered:", quoted(steered))
	return nil
}

// difference returns the row of the last token of one text less that of another.
func difference(ctx context.Context, client *actserve.Client, one, other string) ([]float32, error) {
	last, err := actserve.RowReadout("last", "last", site)
	if err != nil {
		return nil, err
	}
	result, err := client.FetchActivations(ctx, &actservev1.FetchActivationsRequest{
		Items: []*actservev1.FetchItem{
			{Prompt: actserve.TextPrompt(one)}, {Prompt: actserve.TextPrompt(other)},
		},
		Readouts: []*actservev1.Readout{last},
		FailFast: true,
	})
	if err != nil {
		return nil, err
	}
	first := result.Items[0].Readouts["last"].Rows[site].Data // float32 [1, width]
	second := result.Items[1].Readouts["last"].Rows[site].Data
	if len(first) != len(second) {
		return nil, fmt.Errorf("the rows are %d and %d wide, and have no difference", len(first), len(second))
	}
	vector := make([]float32, len(first))
	for i := range vector {
		vector[i] = first[i] - second[i]
	}
	return vector, nil
}

// write returns the likeliest 20 tokens.
func write(
	ctx context.Context, client *actserve.Client, interventions ...*actservev1.Intervention,
) (string, error) {
	result, err := client.Generate(ctx, &actservev1.GenerateRequest{
		Prompt:        actserve.TextPrompt("I think the movie was"),
		Interventions: interventions,
		Sampling: &actservev1.SamplingParams{
			Temperature: proto.Float32(0), MaxTokens: proto.Uint32(20),
		},
	})
	if err != nil {
		return "", err
	}
	return result.Samples[0].Text, nil
}

// quoted writes a text as JSON does.
func quoted(text string) string {
	var written strings.Builder
	encoder := json.NewEncoder(&written)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(text); err != nil {
		return text
	}
	return strings.TrimSpace(written.String())
}
