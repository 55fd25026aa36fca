// Package program is what the examples have in common.
package program

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"os/signal"
	"strings"
)

// Run runs an example against the address that the command line names. An interrupt cancels its
// calls.
func Run(example func(ctx context.Context, target string) error) {
	log.SetFlags(0)
	target := "localhost:50051"
	if len(os.Args) > 1 {
		target = os.Args[1]
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := example(ctx, target); err != nil {
		log.Fatal(err)
	}
}

// Quote writes a text as JSON does.
func Quote(text string) string {
	var written strings.Builder
	encoder := json.NewEncoder(&written)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(text); err != nil {
		return text
	}
	return strings.TrimSuffix(written.String(), "\n")
}
