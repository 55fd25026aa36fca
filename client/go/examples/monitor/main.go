// Monitor watches what a model writes by a probe, and tells where its score is high.
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
	if err := run(context.Background(), target); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, target string) error {
	client, err := actserve.New(actserve.Config{Targets: []string{target}})
	if err != nil {
		return err
	}
	defer client.Close()
	mood, halfway, err := difference(ctx, client, "I loved it, wonderful!", "I hated it, terrible!")
	if err != nil {
		return err
	}
	// [sample]
	probe, err := actserve.LinearProbe(site, mood)
	if err != nil {
		return err
	}
	created, err := client.CreateMonitor(ctx, &actservev1.CreateMonitorRequest{
		MonitorId: "mood",
		Monitor: &actservev1.Monitor{
			Probes: []*actservev1.Probe{probe},
			Lower:  &actservev1.MonitorLevel{Threshold: proto.Float32(halfway), Flag: true},
			Watch:  &actservev1.MonitorWatch{NamedOnly: true},
		},
	})
	if err != nil {
		return err
	}
	name := created.GetMonitor().GetName() // models/.../monitors/mood
	// [/sample]
	if err := watch(ctx, client, name); err != nil {
		return err
	}
	_, err = client.DeleteMonitor(ctx, &actservev1.DeleteMonitorRequest{Name: name})
	return err
}

func watch(ctx context.Context, client *actserve.Client, name string) error {
	result, err := client.Generate(ctx, &actservev1.GenerateRequest{
		Prompt: actserve.TextPrompt("I loved it, wonderful!"),
		Sampling: &actservev1.SamplingParams{
			Temperature: proto.Float32(0), MaxTokens: proto.Uint32(20),
		},
		Monitors:    []string{name},
		ScoreDetail: actservev1.ScoreDetail_SCORE_DETAIL_SAMPLE,
	})
	if err != nil {
		return err
	}
	sample := result.Samples[0]
	fmt.Println("generated:", quoted(sample.Text))
	for _, score := range sample.MonitorScores {
		fmt.Printf("highest: %.2f at token %d\n", score.GetHighestScore(), score.GetHighestPosition())
	}
	for _, alert := range sample.Alerts { // Those of levels with Flag.
		fmt.Println("told:", told(alert))
	}
	// [sample]
	watched := client.WatchAlerts(ctx, &actservev1.WatchAlertsRequest{
		Filter:     &actservev1.AlertFilter{Monitors: []string{name}},
		FromOldest: true,
	})
	for alert, err := range watched {
		if err != nil {
			return err
		}
		fmt.Println("watched:", told(alert.Alert))
		break // It goes on for as long as the loop does.
	}
	// [/sample]
	_, err = client.DeleteAlerts(ctx, &actservev1.DeleteAlertsRequest{
		Filter: &actservev1.AlertFilter{Monitors: []string{name}},
	})
	return err
}

func told(alert *actservev1.Alert) string {
	level := "upper"
	if alert.GetLevel() == actservev1.AlertLevel_ALERT_LEVEL_LOWER {
		level = "lower"
	}
	return fmt.Sprintf("%s, %.2f at token %d", level, alert.GetScore(), alert.GetPosition())
}

// difference returns the row of the last token of one text less that of another, and where along it
// half-way between them is.
func difference(
	ctx context.Context, client *actserve.Client, one, other string,
) (*actservev1.VectorSource, float32, error) {
	last, err := actserve.RowReadout("last", "last", site)
	if err != nil {
		return nil, 0, err
	}
	result, err := client.FetchActivations(ctx, &actservev1.FetchActivationsRequest{
		Items: []*actservev1.FetchItem{
			{Prompt: actserve.TextPrompt(one)}, {Prompt: actserve.TextPrompt(other)},
		},
		Readouts: []*actservev1.Readout{last},
		FailFast: true,
	})
	if err != nil {
		return nil, 0, err
	}
	first := result.Items[0].Readouts["last"].Rows[site].Data // float32 [1, width]
	second := result.Items[1].Readouts["last"].Rows[site].Data
	if len(first) != len(second) {
		return nil, 0, fmt.Errorf("the rows are %d and %d wide, and have no difference", len(first), len(second))
	}
	vector := make([]float32, len(first))
	halfway := 0.0
	for i := range vector {
		vector[i] = first[i] - second[i]
		halfway += float64(vector[i]) * float64(first[i]+second[i]) / 2
	}
	sent, err := actserve.SentVector(vector)
	return sent, float32(halfway), err
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
