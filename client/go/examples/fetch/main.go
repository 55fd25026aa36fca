// Fetch prints how large the activations of each token of a prompt are.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"math"
	"os"
	"strings"

	// [imports]
	"github.com/actserve/actserve/client/go"
	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
	// [/imports]
)

func main() {
	log.SetFlags(0)
	target := "localhost:50051"
	if len(os.Args) > 1 {
		target = os.Args[1]
	}
	if err := fetch(context.Background(), target); err != nil {
		log.Fatal(err)
	}
}

func fetch(ctx context.Context, target string) error {
	// [sample]
	client, err := actserve.New(actserve.Config{Targets: []string{target}})
	if err != nil {
		return err
	}
	defer client.Close()

	rows, err := actserve.RowReadout("acts", "all", "resid_post.15")
	if err != nil {
		return err
	}
	result, err := client.FetchActivations(ctx, &actservev1.FetchActivationsRequest{
		Items:    []*actservev1.FetchItem{{Prompt: actserve.TextPrompt("The capital of France is")}},
		Readouts: []*actservev1.Readout{rows},
		FailFast: true,
	})
	if err != nil {
		return err
	}
	item := result.Items[0]
	acts, err := item.Readouts.Rows("acts", "resid_post.15") // float32 [positions, width]
	if err != nil {
		return err
	}
	// [/sample]
	for i, position := range acts.Positions {
		token := item.Prompt.GetTexts()[position]
		fmt.Printf("%d %s %.3f\n", position, quoted(token), norm(acts.Row(i)))
	}
	return nil
}

func norm(row []float32) float64 {
	sum := 0.0
	for _, value := range row {
		sum += float64(value) * float64(value)
	}
	return math.Sqrt(sum)
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
