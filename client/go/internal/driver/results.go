package main

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/actserve/actserve/client/go"
	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// object is one of JSON.
type object = map[string]any

func (q *question) decodeTensor() (any, error) {
	tensor := &actservev1.Tensor{}
	if err := protojson.Unmarshal(q.Tensor, tensor); err != nil {
		return nil, err
	}
	decoded, err := actserve.DecodeTensor(tensor)
	return array(decoded, object{}), err
}

func (q *question) encodeTensor() (any, error) {
	values, err := floats(q.Data)
	if err != nil {
		return nil, err
	}
	return actserve.EncodeTensor(values, q.Shape...)
}

// floats reads float32 values in hexadecimal.
func floats(text string) ([]float32, error) {
	data, err := hex.DecodeString(text)
	if err != nil {
		return nil, err
	}
	values := make([]float32, len(data)/4)
	for i := range values {
		values[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
	}
	return values, nil
}

// array adds the shape and the elements of a tensor.
func array(tensor actserve.Tensor, to object) object {
	data := make([]byte, 0, 4*len(tensor.Data))
	for _, value := range tensor.Data {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(value))
	}
	to["shape"], to["data"] = list(tensor.Shape), hex.EncodeToString(data)
	return to
}

// list is never null in JSON.
func list[T any](values []T) []T {
	if values == nil {
		return []T{}
	}
	return values
}

func (q *question) collect(ctx context.Context, client *actserve.Client) (any, error) {
	switch q.Method {
	case "FetchActivations":
		return fetched(client.FetchActivations(ctx, request(q, &actservev1.FetchActivationsRequest{})))
	case "Generate":
		return generated(client.Generate(ctx, request(q, &actservev1.GenerateRequest{})))
	case "ExplainActivations":
		return explained(client.ExplainActivations(ctx, request(q, &actservev1.ExplainActivationsRequest{})))
	case "ExplainText":
		return explained(client.ExplainText(ctx, request(q, &actservev1.ExplainTextRequest{})))
	case "CompareActivations":
		return explained(client.CompareActivations(ctx, request(q, &actservev1.CompareActivationsRequest{})))
	case "ReconstructActivations":
		result, err := client.ReconstructActivations(ctx,
			request(q, &actservev1.ReconstructActivationsRequest{}))
		if err != nil {
			return nil, err
		}
		return array(result.Rows, object{"call_id": result.CallID}), nil
	case "MeasureHeads":
		return measured(client.MeasureHeads(ctx, request(q, &actservev1.MeasureHeadsRequest{})))
	case "WatchAttributionGraph":
		return traced(client.WatchAttributionGraph(ctx,
			request(q, &actservev1.WatchAttributionGraphRequest{})))
	case "RunSweep":
		return swept(client.RunSweep(ctx, request(q, &actservev1.RunSweepRequest{})))
	case "ReplayMonitors":
		return replayed(client.ReplayMonitors(ctx, request(q, &actservev1.ReplayMonitorsRequest{})))
	}
	return nil, fmt.Errorf("nothing of %q is collected", q.Method)
}

func fetched(result *actserve.FetchResult, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	sequences := []object{}
	for index, item := range result.Items {
		sequence := object{"index": index, "key": item.Key}
		if item.Err != nil {
			sequence["error"] = toError(item.Err)
		} else {
			sequence["token_ids"] = list(item.Prompt.GetIds())
			sequence["readouts"] = readouts(item.Readouts)
		}
		sequences = append(sequences, sequence)
	}
	told := object{"call_id": result.CallID, "sequences": sequences}
	if len(result.Statistics) > 0 {
		told["statistics"] = statistics(result.Statistics)
	}
	return told, nil
}

func statistics(all map[string]actserve.Statistics) object {
	told := object{}
	for name, sites := range all {
		bySite := object{}
		for site, labels := range sites {
			byLabel := object{}
			for label, each := range labels {
				byLabel[label] = object{
					"rows":           each.Rows,
					"mean":           array(each.Mean, object{}),
					"second_moments": array(each.SecondMoments, object{}),
				}
			}
			bySite[site] = byLabel
		}
		told[name] = bySite
	}
	return told
}

func generated(result *actserve.GenerateResult, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	sequences := []object{}
	for index, sample := range result.Samples {
		sequence := object{
			"index":         index,
			"token_ids":     append(list(result.Prompt.GetIds()), sample.TokenIDs...),
			"text":          sample.Text,
			"finish_reason": finishReason(sample.FinishReason),
			"readouts":      readouts(sample.Readouts),
		}
		if sample.Monitor != "" {
			sequence["monitor"] = sample.Monitor
		}
		if len(sample.Alerts) > 0 {
			sequence["alerts"] = alerts(sample.Alerts)
		}
		if len(sample.MonitorScores) > 0 {
			told, err := scores(sample.MonitorScores)
			if err != nil {
				return nil, err
			}
			sequence["monitor_scores"] = told
		}
		if len(sample.MonitorInterventions) > 0 {
			sequence["monitor_interventions"] = changes(sample.MonitorInterventions)
		}
		sequences = append(sequences, sequence)
	}
	return object{"call_id": result.CallID, "sequences": sequences}, nil
}

func alerts(all []*actservev1.Alert) []object {
	told := []object{}
	for _, alert := range all {
		told = append(told, object{
			"monitor": alert.GetMonitor(), "level": level(alert.GetLevel()),
			"score": alert.GetScore(), "position": alert.GetPosition(),
		})
	}
	return told
}

func changes(all []*actservev1.MonitorInterventions) []object {
	told := []object{}
	for _, changed := range all {
		reports := []object{}
		for _, report := range changed.GetInterventions() {
			reports = append(reports, object{
				"rows": report.GetRows(), "changed_rows": report.GetChangedRows(),
				"reused_rows": report.GetReusedRows(), "mean_relative_change": report.MeanRelativeChange,
			})
		}
		told = append(told, object{
			"monitor": changed.GetMonitor(), "level": level(changed.GetLevel()),
			"first_position": changed.GetFirstPosition(), "interventions": reports,
		})
	}
	return told
}

func scores(all []*actservev1.MonitorScore) ([]object, error) {
	told := []object{}
	for _, score := range all {
		written := object{
			"monitor": score.GetMonitor(), "tokens": score.GetTokens(), "score": score.GetScore(),
			"highest_score": score.GetHighestScore(), "highest_position": score.GetHighestPosition(),
			"level": level(score.GetLevel()),
		}
		if score.GetTokenScores() != nil {
			decoded, err := actserve.DecodeTensor(score.GetTokenScores())
			if err != nil {
				return nil, err
			}
			array(decoded, written)["positions"] = score.GetPositions()
		}
		told = append(told, written)
	}
	return told, nil
}

// level is the name of a level; null for none.
func level(level actservev1.AlertLevel) any {
	if level == actservev1.AlertLevel_ALERT_LEVEL_UNSPECIFIED {
		return nil
	}
	return strings.TrimPrefix(level.String(), "ALERT_LEVEL_")
}

func replayed(result *actserve.ReplayResult, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	items := []object{}
	for index, item := range result.Items {
		told := object{"index": index, "key": item.Key}
		if item.Err != nil {
			told["error"] = toError(item.Err)
		} else if told["scores"], err = scores(item.Scores); err != nil {
			return nil, err
		}
		items = append(items, told)
	}
	return object{"call_id": result.CallID, "items": items}, nil
}

func finishReason(reason actservev1.FinishReason) string {
	return strings.TrimPrefix(reason.String(), "FINISH_REASON_")
}

func swept(result *actserve.SweepResult, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	cells := []object{}
	for _, cell := range result.Cells {
		told := object{"at": []any{
			cell.PromptIndex, cell.VariantIndex, cell.CoefficientIndex, cell.SiteIndex, cell.PositionIndex,
		}}
		if cell.Err != nil {
			told["error"] = toError(cell.Err)
		} else {
			told["text"] = cell.GetText()
			told["finish_reason"] = nil
			if cell.FinishReason != actservev1.FinishReason_FINISH_REASON_UNSPECIFIED {
				told["finish_reason"] = finishReason(cell.FinishReason)
			}
			told["answer_logprobs"] = list(cell.AnswerLogprobs)
			told["score_values"] = list(cell.ScoreValues)
			told["perplexity"] = cell.Perplexity
			told["repetition"] = cell.Repetition
			told["stored"] = cell.Stored
		}
		cells = append(cells, told)
	}
	return object{"call_id": result.CallID, "cells": cells}, nil
}

func explained(result *actserve.ExplainResult, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	explanations := []object{}
	for _, each := range result.Explanations {
		explanations = append(explanations, object{
			"row": each.GetRowIndex(), "sample": each.GetSampleIndex(), "text": each.GetText(),
		})
	}
	return object{"call_id": result.CallID, "nla": result.Nla, "explanations": explanations}, nil
}

func readouts(all map[string]actserve.Readout) object {
	told := object{}
	for name, readout := range all {
		told[name] = readoutAnswer(readout)
	}
	return told
}

func readoutAnswer(readout actserve.Readout) object {
	told := object{}
	if readout.Rows != nil {
		told["rows"] = each(readout.Rows, func(rows actserve.Rows) object {
			written := array(rows.Tensor, object{"positions": list(rows.Positions)})
			if rows.Indices != nil {
				written["indices"] = rows.Indices
			}
			return written
		})
	}
	if readout.Predictions != nil {
		told["predictions"] = each(readout.Predictions, predictions)
	}
	if readout.Attention != nil {
		told["attention"] = each(readout.Attention, func(attention actserve.Attention) object {
			written := array(attention.Weights, object{"queries": list(attention.Queries)})
			if attention.Keys != nil {
				written["keys"] = attention.Keys
			}
			return written
		})
	}
	if readout.AttentionSummary != nil {
		told["attention_summary"] = each(readout.AttentionSummary,
			func(summary actserve.AttentionSummary) object {
				return object{
					"queries": summary.Queries, "previous_token": array(summary.PreviousToken, object{}),
				}
			})
	}
	if readout.LogitAttribution != nil {
		told["logit_attribution"] = each(readout.LogitAttribution,
			func(found actserve.LogitAttribution) object {
				return array(found.Tensor, object{"positions": list(found.Positions)})
			})
	}
	if readout.Kept != "" {
		told["kept"] = readout.Kept
	}
	return told
}

func predictions(found actserve.Predictions) object {
	told := object{
		"positions": list(found.Positions),
		"top_ids":   list(found.TopIDs),
		"top_texts": list(found.TopTexts),
	}
	for name, tensor := range map[string]actserve.Tensor{
		"top_logprobs":        found.TopLogprobs,
		"token_logprobs":      found.TokenLogprobs,
		"next_token_logprobs": found.NextTokenLogprobs,
	} {
		if tensor.Shape != nil {
			told[name] = array(tensor, object{})
		}
	}
	return told
}

// each writes values by their key, a site, head or layer.
func each[K string | uint32, V any](all map[K]V, write func(V) object) object {
	told := object{}
	for key, value := range all {
		switch key := any(key).(type) {
		case string:
			told[key] = write(value)
		case uint32:
			told[strconv.FormatUint(uint64(key), 10)] = write(value)
		}
	}
	return told
}
