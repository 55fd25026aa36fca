// Explain puts into words what the model thinks at the last token of a prompt.
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

func main() {
	log.SetFlags(0)
	target := "localhost:50051"
	if len(os.Args) > 1 {
		target = os.Args[1]
	}
	if err := explain(context.Background(), target); err != nil {
		log.Fatal(err)
	}
}

func explain(ctx context.Context, target string) error {
	client, err := actserve.New(actserve.Config{Targets: []string{target}})
	if err != nil {
		return err
	}
	defer client.Close()
	// [explain]
	last, err := actserve.ParsePositions("last")
	if err != nil {
		return err
	}
	result, err := client.ExplainText(ctx, &actservev1.ExplainTextRequest{
		Prompt:    actserve.TextPrompt("The capital of France is"),
		Positions: last,
		Spec: &actservev1.ExplainSpec{
			Temperature: proto.Float32(0), MaxTokens: proto.Uint32(32), Score: true,
		},
	})
	if err != nil {
		return err
	}
	for _, explanation := range result.Explanations {
		// The cosine says how well the text accounts for the row.
		show(explanation.GetText(), explanation.GetScore().GetCosine())
	}
	// [/explain]
	return nil
}

func show(text string, cosine float32) { fmt.Printf("%s %.2f\n", quoted(text), cosine) }

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
