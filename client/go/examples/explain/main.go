// Explain puts into words what the model thinks at the last token of a prompt.
package main

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/actserve/actserve/client/go"
	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
	"github.com/actserve/actserve/client/go/examples/internal/program"
)

func main() { program.Run(explain) }

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

func show(text string, cosine float32) { fmt.Printf("%s %.2f\n", program.Quote(text), cosine) }
