package main

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/actserve/actserve/client/go"
	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// request reads the request of a question as the message that the method takes.
func request[Message proto.Message](q *question, into Message) Message {
	if len(q.Request) > 0 {
		if err := protojson.Unmarshal(q.Request, into); err != nil {
			panic(err)
		}
	}
	return into
}

func toJSON(message proto.Message) json.RawMessage {
	written, err := protojson.Marshal(message)
	if err != nil {
		panic(err)
	}
	return written
}

func (q *question) unary(ctx context.Context, client *actserve.Client) (any, error) {
	switch q.Method {
	case "GetModel":
		return client.GetModel(ctx, request(q, &actservev1.GetModelRequest{}))
	case "Tokenize":
		return client.Tokenize(ctx, request(q, &actservev1.TokenizeRequest{}))
	case "GetKeptActivations":
		return client.GetKeptActivations(ctx, request(q, &actservev1.GetKeptActivationsRequest{}))
	case "DeleteKeptActivations":
		return client.DeleteKeptActivations(ctx, request(q, &actservev1.DeleteKeptActivationsRequest{}))
	case "GetNla":
		return client.GetNla(ctx, request(q, &actservev1.GetNlaRequest{}))
	case "ScoreExplanations":
		return client.ScoreExplanations(ctx, request(q, &actservev1.ScoreExplanationsRequest{}))
	case "SetExplanationBaseline":
		return client.SetExplanationBaseline(ctx, request(q, &actservev1.SetExplanationBaselineRequest{}))
	case "DeleteExplanationBaseline":
		return client.DeleteExplanationBaseline(ctx,
			request(q, &actservev1.DeleteExplanationBaselineRequest{}))
	case "CreateSteeringVector":
		return client.CreateSteeringVector(ctx, request(q, &actservev1.CreateSteeringVectorRequest{}))
	case "MakeSteeringVector":
		return client.MakeSteeringVector(ctx, request(q, &actservev1.MakeSteeringVectorRequest{}))
	case "CombineSteeringVectors":
		return client.CombineSteeringVectors(ctx, request(q, &actservev1.CombineSteeringVectorsRequest{}))
	case "GetSteeringVector":
		return client.GetSteeringVector(ctx, request(q, &actservev1.GetSteeringVectorRequest{}))
	case "UpdateSteeringVector":
		return client.UpdateSteeringVector(ctx, request(q, &actservev1.UpdateSteeringVectorRequest{}))
	case "DeleteSteeringVector":
		return client.DeleteSteeringVector(ctx, request(q, &actservev1.DeleteSteeringVectorRequest{}))
	case "GetDictionary":
		return client.GetDictionary(ctx, request(q, &actservev1.GetDictionaryRequest{}))
	case "DeleteDictionary":
		return client.DeleteDictionary(ctx, request(q, &actservev1.DeleteDictionaryRequest{}))
	case "SetFeatureLabels":
		return client.SetFeatureLabels(ctx, request(q, &actservev1.SetFeatureLabelsRequest{}))
	case "CreateAttributionGraph":
		return client.CreateAttributionGraph(ctx, request(q, &actservev1.CreateAttributionGraphRequest{}))
	case "GetAttributionGraph":
		return client.GetAttributionGraph(ctx, request(q, &actservev1.GetAttributionGraphRequest{}))
	case "DeleteAttributionGraph":
		return client.DeleteAttributionGraph(ctx, request(q, &actservev1.DeleteAttributionGraphRequest{}))
	case "CreateMonitor":
		return client.CreateMonitor(ctx, request(q, &actservev1.CreateMonitorRequest{}))
	case "GetMonitor":
		return client.GetMonitor(ctx, request(q, &actservev1.GetMonitorRequest{}))
	case "UpdateMonitor":
		return client.UpdateMonitor(ctx, request(q, &actservev1.UpdateMonitorRequest{}))
	case "DeleteMonitor":
		return client.DeleteMonitor(ctx, request(q, &actservev1.DeleteMonitorRequest{}))
	case "FitMonitor":
		return client.FitMonitor(ctx, request(q, &actservev1.FitMonitorRequest{}))
	case "GetMonitorScores":
		return client.GetMonitorScores(ctx, request(q, &actservev1.GetMonitorScoresRequest{}))
	case "GetAlert":
		return client.GetAlert(ctx, request(q, &actservev1.GetAlertRequest{}))
	case "DecideAlert":
		return client.DecideAlert(ctx, request(q, &actservev1.DecideAlertRequest{}))
	case "DeleteAlerts":
		return client.DeleteAlerts(ctx, request(q, &actservev1.DeleteAlertsRequest{}))
	}
	return nil, fmt.Errorf("there is no method %q with one answer", q.Method)
}

func (q *question) list(ctx context.Context, client *actserve.Client) (any, error) {
	switch q.Method {
	case "ListModels":
		return names(q, client.ListModels(ctx, request(q, &actservev1.ListModelsRequest{})))
	case "ListNlas":
		return names(q, client.ListNlas(ctx, request(q, &actservev1.ListNlasRequest{})))
	case "ListKeptActivations":
		return names(q, client.ListKeptActivations(ctx, request(q, &actservev1.ListKeptActivationsRequest{})))
	case "ListSteeringVectors":
		return names(q, client.ListSteeringVectors(ctx, request(q, &actservev1.ListSteeringVectorsRequest{})))
	case "ListDictionaries":
		return names(q, client.ListDictionaries(ctx, request(q, &actservev1.ListDictionariesRequest{})))
	case "ListAttributionGraphs":
		return names(q, client.ListAttributionGraphs(ctx,
			request(q, &actservev1.ListAttributionGraphsRequest{})))
	case "ListMonitors":
		return names(q, client.ListMonitors(ctx, request(q, &actservev1.ListMonitorsRequest{})))
	case "ListAlerts":
		return names(q, client.ListAlerts(ctx, request(q, &actservev1.ListAlertsRequest{})))
	}
	return nil, fmt.Errorf("there is no list %q", q.Method)
}

func names[T interface{ GetName() string }](q *question, all iter.Seq2[T, error]) (any, error) {
	found := []string{}
	for each, err := range all {
		if err != nil {
			return nil, err
		}
		found = append(found, each.GetName())
		if q.Take != nil && len(found) >= *q.Take {
			break
		}
	}
	return map[string]any{"names": found}, nil
}

// open returns the stream of a method, of which every event tells its name.
func (q *question) open(ctx context.Context, client *actserve.Client) iter.Seq2[string, error] {
	switch q.Method {
	case "FetchActivations":
		return named(client.FetchActivationsStream(ctx, request(q, &actservev1.FetchActivationsRequest{})))
	case "Generate":
		return named(client.GenerateStream(ctx, request(q, &actservev1.GenerateRequest{})))
	case "ExplainActivations":
		return named(client.ExplainActivationsStream(ctx, request(q, &actservev1.ExplainActivationsRequest{})))
	case "ExplainText":
		return named(client.ExplainTextStream(ctx, request(q, &actservev1.ExplainTextRequest{})))
	case "CompareActivations":
		return named(client.CompareActivationsStream(ctx, request(q, &actservev1.CompareActivationsRequest{})))
	case "ReconstructActivations":
		return named(client.ReconstructActivationsStream(ctx,
			request(q, &actservev1.ReconstructActivationsRequest{})))
	case "MeasureHeads":
		return named(client.MeasureHeadsStream(ctx, request(q, &actservev1.MeasureHeadsRequest{})))
	case "WatchAttributionGraph":
		return named(client.WatchAttributionGraphStream(ctx,
			request(q, &actservev1.WatchAttributionGraphRequest{})))
	case "RunSweep":
		return named(client.RunSweepStream(ctx, request(q, &actservev1.RunSweepRequest{})))
	case "ReplayMonitors":
		return named(client.ReplayMonitorsStream(ctx, request(q, &actservev1.ReplayMonitorsRequest{})))
	}
	return func(yield func(string, error) bool) {
		yield("", fmt.Errorf("there is no stream %q", q.Method))
	}
}

func named[Event proto.Message](events iter.Seq2[Event, error]) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for event, err := range events {
			name := "unknown"
			if err == nil {
				message := event.ProtoReflect()
				field := message.WhichOneof(message.Descriptor().Oneofs().ByName("event"))
				if field != nil {
					name = string(field.Name())
				}
			}
			if !yield(name, err) {
				return
			}
		}
	}
}

func (q *question) stream(
	ctx context.Context, cancel context.CancelFunc, client *actserve.Client,
) (any, error) {
	seen := []string{}
	for name, err := range q.open(ctx, client) {
		if err != nil {
			return map[string]any{"events": seen}, err
		}
		seen = append(seen, name)
		if q.CancelAfter != nil && len(seen) >= *q.CancelAfter {
			cancel()
		}
	}
	return map[string]any{"events": seen}, nil
}

// watch tells alerts until there are enough of them.
func (q *question) watch(ctx context.Context, client *actserve.Client) (any, error) {
	seen := []object{}
	told := func() object { return object{"alerts": seen} }
	for alert, err := range client.WatchAlerts(ctx, request(q, &actservev1.WatchAlertsRequest{})) {
		if err != nil {
			return told(), err
		}
		seen = append(seen, object{"name": alert.GetName(), "lost_before": alert.LostBefore})
		if q.Take != nil && len(seen) >= *q.Take {
			break
		}
	}
	return told(), nil
}

func (q *question) streams(warn func(string)) (any, error) {
	before := runtime.NumGoroutine()
	client, err := q.client(warn)
	if err != nil {
		return nil, err
	}
	var finished, cancelled atomic.Int64
	var running sync.WaitGroup
	failures := make(chan error, q.Count)
	for number := range q.Count {
		running.Add(1)
		go func() {
			defer running.Done()
			ctx, cancel := q.context()
			defer cancel()
			for _, err := range q.open(ctx, client) {
				if err != nil {
					failures <- err
					return
				}
				if q.CancelEvery > 0 && (number+1)%q.CancelEvery == 0 {
					cancelled.Add(1)
					return // Leaving the loop cancels the call.
				}
			}
			finished.Add(1)
		}()
	}
	running.Wait()
	client.Close()
	select {
	case err := <-failures:
		return nil, err
	default:
	}
	return map[string]any{
		"finished": finished.Load(), "cancelled": cancelled.Load(), "leaked": leaked(before),
	}, nil
}

// leaked counts the goroutines that are left over. Those of a connection need a moment to end.
func leaked(before int) int {
	over := 0
	for range 200 {
		if over = runtime.NumGoroutine() - before; over <= 0 {
			return 0
		}
		time.Sleep(10 * time.Millisecond)
	}
	return over
}

func (q *question) measure(ctx context.Context, client *actserve.Client) (any, error) {
	var calls, bytes atomic.Int64
	var running sync.WaitGroup
	failures := make(chan error, q.Concurrency)
	start := time.Now()
	for range q.Concurrency {
		running.Add(1)
		go func() {
			defer running.Done()
			for time.Since(start) < seconds(q.Seconds) {
				count, err := q.rowBytes(ctx, client)
				if err != nil {
					failures <- err
					return
				}
				calls.Add(1)
				bytes.Add(count)
			}
		}()
	}
	running.Wait()
	select {
	case err := <-failures:
		return nil, err
	default:
	}
	return map[string]any{
		"calls": calls.Load(), "bytes": bytes.Load(), "seconds": time.Since(start).Seconds(),
	}, nil
}

// rowBytes collects one call, and returns the bytes of the rows in it.
func (q *question) rowBytes(ctx context.Context, client *actserve.Client) (count int64, err error) {
	var all []map[string]actserve.Readout
	switch q.Method {
	case "FetchActivations":
		result, err := client.FetchActivations(ctx, request(q, &actservev1.FetchActivationsRequest{}))
		if err != nil {
			return 0, err
		}
		for _, item := range result.Items {
			if item.Err != nil {
				return 0, item.Err
			}
			all = append(all, item.Readouts)
		}
	case "Generate":
		result, err := client.Generate(ctx, request(q, &actservev1.GenerateRequest{}))
		if err != nil {
			return 0, err
		}
		for _, sample := range result.Samples {
			all = append(all, sample.Readouts)
		}
	default:
		return 0, fmt.Errorf("nothing is measured of %s", strings.ToLower(q.Method))
	}
	for _, readouts := range all {
		for _, readout := range readouts {
			for _, rows := range readout.Rows {
				count += int64(4 * len(rows.Data))
			}
		}
	}
	return count, nil
}
