// Patch keeps a row of one run on the server, puts it into another, and prints what the model says
// then.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/actserve/actserve/client/go"
	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

func main() {
	log.SetFlags(0)
	target := "localhost:50051"
	if len(os.Args) > 1 {
		target = os.Args[1]
	}
	if err := patch(context.Background(), target); err != nil {
		log.Fatal(err)
	}
}

func patch(ctx context.Context, target string) error {
	client, err := actserve.New(actserve.Config{Targets: []string{target}})
	if err != nil {
		return err
	}
	defer client.Close()
	// [patch]
	keep, err := actserve.KeepReadout("kept", "-1", "resid_post.15")
	if err != nil {
		return err
	}
	france, err := run(ctx, client, "The capital of France is", keep)
	if err != nil {
		return err
	}
	kept := france.Readouts["kept"].Kept // A name: the row stays on the server.
	replace, err := actserve.ReplaceByKept("resid_post.15", "-1", kept)
	if err != nil {
		return err
	}
	italy, err := run(ctx, client, "The capital of Italy is", likeliest, replace)
	if err != nil {
		return err
	}
	// [/patch]
	said := italy.Readouts["said"].Predictions["final_norm"]
	for i, text := range said.TopTexts {
		fmt.Printf("%s %.3f\n", quoted(text), said.TopLogprobs.Data[i])
	}
	_, err = client.DeleteKeptActivations(ctx, &actservev1.DeleteKeptActivationsRequest{Name: kept})
	return err
}

// likeliest reads the three likeliest next tokens at the last position.
var likeliest = actserve.Must(actserve.PredictionReadout("said", "last", 3, "final_norm"))

func run(
	ctx context.Context, client *actserve.Client, prompt string, readout *actservev1.Readout,
	interventions ...*actservev1.Intervention,
) (*actserve.Item, error) {
	result, err := client.FetchActivations(ctx, &actservev1.FetchActivationsRequest{
		Items:         []*actservev1.FetchItem{{Prompt: actserve.TextPrompt(prompt)}},
		Readouts:      []*actservev1.Readout{readout},
		Interventions: interventions,
		FailFast:      true,
	})
	if err != nil {
		return nil, err
	}
	return result.Items[0], nil
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
