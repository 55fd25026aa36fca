import com.google.gson.Gson;
import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import dev.actserve.ActserveException;
import dev.actserve.AttentionPattern;
import dev.actserve.Captured;
import dev.actserve.ExplainResult;
import dev.actserve.FetchResult;
import dev.actserve.GenerateResult;
import dev.actserve.LogitAttribution;
import dev.actserve.Predictions;
import dev.actserve.ReconstructResult;
import dev.actserve.ReplayResult;
import dev.actserve.Rows;
import dev.actserve.Statistics;
import dev.actserve.SweepResult;
import dev.actserve.Tensors;
import dev.actserve.v1.Alert;
import dev.actserve.v1.AlertLevel;
import dev.actserve.v1.FetchActivationsRequest;
import dev.actserve.v1.GenerateRequest;
import dev.actserve.v1.InterventionReport;
import dev.actserve.v1.MonitorInterventions;
import dev.actserve.v1.MonitorScore;
import dev.actserve.v1.Readout;
import dev.actserve.v1.SweepCell;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.BiFunction;
import java.util.function.Function;

/** What was collected, as the conformance tests want it. */
final class Results {
  private static final Gson GSON = new Gson();

  private Results() {}

  static JsonObject of(FetchResult result, FetchActivationsRequest request) {
    JsonArray sequences = new JsonArray();
    for (FetchResult.Item item : result.items()) {
      JsonObject sequence = new JsonObject();
      sequence.addProperty("index", sequences.size());
      sequence.addProperty("key", item.key());
      if (item.error().isPresent()) {
        ActserveException error = item.error().get();
        sequence.add("error", Driver.json(error));
      } else {
        sequence.add("token_ids", GSON.toJsonTree(item.prompt().getIdsList()));
        sequence.add("readouts", readouts(item.captured(), request.getReadoutsList()));
      }
      sequences.add(sequence);
    }
    JsonObject json = new JsonObject();
    json.addProperty("call_id", result.callId());
    json.add("sequences", sequences);
    if (!result.statistics().isEmpty()) {
      json.add(
          "statistics",
          mapped(
              result.statistics(),
              (name, bySite) ->
                  mapped(
                      bySite,
                      (site, byLabel) -> mapped(byLabel, (label, each) -> statistics(each)))));
    }
    return json;
  }

  static JsonObject of(GenerateResult result, GenerateRequest request) {
    JsonArray sequences = new JsonArray();
    for (GenerateResult.Sample sample : result.samples()) {
      JsonObject sequence = new JsonObject();
      sequence.addProperty("index", sequences.size());
      sequence.add("token_ids", GSON.toJsonTree(sample.tokenIds()));
      sequence.addProperty("text", sample.text());
      sequence.addProperty("finish_reason", sample.finishReason());
      sequence.add("readouts", readouts(sample.captured(), request.getReadoutsList()));
      if (sample.finished().hasMonitor()) {
        sequence.addProperty("monitor", sample.finished().getMonitor());
      }
      if (!sample.alerts().isEmpty()) {
        sequence.add("alerts", listed(sample.alerts(), Results::alert));
      }
      if (sample.finished().getMonitorScoresCount() > 0) {
        sequence.add(
            "monitor_scores", listed(sample.finished().getMonitorScoresList(), Results::score));
      }
      if (sample.finished().getMonitorInterventionsCount() > 0) {
        sequence.add(
            "monitor_interventions",
            listed(sample.finished().getMonitorInterventionsList(), Results::changed));
      }
      sequences.add(sequence);
    }
    JsonObject json = new JsonObject();
    json.addProperty("call_id", result.callId());
    json.add("sequences", sequences);
    return json;
  }

  static JsonObject of(ReplayResult result) {
    JsonArray items = new JsonArray();
    for (ReplayResult.Item item : result.items()) {
      JsonObject told = new JsonObject();
      told.addProperty("index", items.size());
      told.addProperty("key", item.key());
      if (item.error().isPresent()) {
        told.add("error", Driver.json(item.error().get()));
      } else {
        told.add("scores", listed(item.scores(), Results::score));
      }
      items.add(told);
    }
    JsonObject json = new JsonObject();
    json.addProperty("call_id", result.callId());
    json.add("items", items);
    return json;
  }

  private static JsonObject alert(Alert alert) {
    JsonObject json = new JsonObject();
    json.addProperty("monitor", alert.getMonitor());
    json.addProperty("level", level(alert.getLevel()));
    json.addProperty("score", alert.getScore());
    json.addProperty("position", alert.getPosition());
    return json;
  }

  private static JsonObject changed(MonitorInterventions changed) {
    JsonObject json = new JsonObject();
    json.addProperty("monitor", changed.getMonitor());
    json.addProperty("level", level(changed.getLevel()));
    json.addProperty("first_position", changed.getFirstPosition());
    json.add("interventions", listed(changed.getInterventionsList(), Results::report));
    return json;
  }

  private static JsonObject report(InterventionReport report) {
    JsonObject json = new JsonObject();
    json.addProperty("rows", report.getRows());
    json.addProperty("changed_rows", report.getChangedRows());
    json.addProperty("reused_rows", report.getReusedRows());
    json.addProperty(
        "mean_relative_change",
        report.hasMeanRelativeChange() ? report.getMeanRelativeChange() : null);
    return json;
  }

  private static JsonObject score(MonitorScore score) {
    JsonObject json = new JsonObject();
    if (score.hasTokenScores()) {
      json = Driver.json(Tensors.decode(score.getTokenScores()));
      json.add("positions", GSON.toJsonTree(score.getPositionsList()));
    }
    json.addProperty("monitor", score.getMonitor());
    json.addProperty("tokens", score.getTokens());
    json.addProperty("score", score.getScore());
    json.addProperty("highest_score", score.getHighestScore());
    json.addProperty("highest_position", score.getHighestPosition());
    json.addProperty("level", level(score.getLevel()));
    return json;
  }

  /** The name of a level; null for none. */
  private static String level(AlertLevel level) {
    return level == AlertLevel.ALERT_LEVEL_UNSPECIFIED
        ? null
        : level.name().replace("ALERT_LEVEL_", "");
  }

  private static <T> JsonArray listed(List<T> values, Function<T, JsonObject> change) {
    JsonArray json = new JsonArray();
    values.forEach(value -> json.add(change.apply(value)));
    return json;
  }

  static JsonObject of(ExplainResult result) {
    JsonArray explanations = new JsonArray();
    for (var explanation : result.explanations()) {
      JsonObject each = new JsonObject();
      each.addProperty("row", explanation.getRowIndex());
      each.addProperty("sample", explanation.getSampleIndex());
      each.addProperty("text", explanation.getText());
      explanations.add(each);
    }
    JsonObject json = new JsonObject();
    json.addProperty("call_id", result.started().getCallId());
    json.addProperty("nla", result.started().getNla());
    json.add("explanations", explanations);
    return json;
  }

  static JsonObject of(ReconstructResult result) {
    JsonObject json = Driver.json(result.rows());
    json.addProperty("call_id", result.callId());
    return json;
  }

  static JsonObject of(SweepResult result) {
    JsonArray cells = new JsonArray();
    for (SweepResult.Cell each : result.cells()) {
      SweepCell cell = each.cell();
      JsonArray at = new JsonArray();
      at.add(cell.getPromptIndex());
      at.add(cell.getVariantIndex());
      at.add(cell.hasCoefficientIndex() ? cell.getCoefficientIndex() : null);
      at.add(cell.hasSiteIndex() ? cell.getSiteIndex() : null);
      at.add(cell.hasPositionIndex() ? cell.getPositionIndex() : null);
      JsonObject told = new JsonObject();
      told.add("at", at);
      if (each.error().isPresent()) {
        told.add("error", Driver.json(each.error().get()));
      } else {
        told.addProperty("text", cell.getText());
        told.addProperty("finish_reason", finishReason(cell));
        told.add("answer_logprobs", GSON.toJsonTree(cell.getAnswerLogprobsList()));
        told.add("score_values", GSON.toJsonTree(cell.getScoreValuesList()));
        told.addProperty("perplexity", cell.hasPerplexity() ? cell.getPerplexity() : null);
        told.addProperty("repetition", cell.hasRepetition() ? cell.getRepetition() : null);
        told.addProperty("stored", cell.getStored());
      }
      cells.add(told);
    }
    JsonObject json = new JsonObject();
    json.addProperty("call_id", result.callId());
    json.add("cells", cells);
    return json;
  }

  private static String finishReason(SweepCell cell) {
    return switch (cell.getFinishReason()) {
      case FINISH_REASON_UNSPECIFIED -> null;
      case UNRECOGNIZED -> Integer.toString(cell.getFinishReasonValue());
      default -> cell.getFinishReason().name().substring("FINISH_REASON_".length());
    };
  }

  private static JsonObject readouts(Captured captured, List<Readout> readouts) {
    Map<String, Readout> asked = new HashMap<>();
    readouts.forEach(readout -> asked.put(readout.getName(), readout));
    JsonObject json = new JsonObject();
    captured
        .rows()
        .forEach(
            (name, bySite) -> {
              boolean sparse = asked.get(name).getRows().getProjection().hasSendTop();
              add(json, name, "rows", mapped(bySite, (site, rows) -> rows(rows, sparse)));
            });
    captured
        .predictions()
        .forEach(
            (name, bySite) -> {
              Readout readout = asked.get(name);
              add(
                  json,
                  name,
                  "predictions",
                  mapped(bySite, (site, each) -> predictions(each, readout)));
            });
    captured
        .attention()
        .forEach(
            (name, byHead) -> {
              boolean sparse = asked.get(name).getAttention().hasTopK();
              add(json, name, "attention", mapped(byHead, (head, each) -> pattern(each, sparse)));
            });
    captured
        .attentionSummaries()
        .forEach(
            (name, byLayer) ->
                add(
                    json,
                    name,
                    "attention_summary",
                    mapped(
                        byLayer,
                        (layer, each) -> {
                          JsonObject summary = new JsonObject();
                          summary.addProperty("queries", each.counts().queries());
                          summary.add("previous_token", Driver.json(each.previousToken()));
                          return summary;
                        })));
    captured
        .logitAttributions()
        .forEach(
            (name, bySite) ->
                add(
                    json,
                    name,
                    "logit_attribution",
                    mapped(bySite, (site, each) -> attribution(each))));
    captured.kept().forEach((name, kept) -> add(json, name, "kept", GSON.toJsonTree(kept)));
    return json;
  }

  private static void add(JsonObject readouts, String name, String kind, JsonElement found) {
    JsonObject readout = new JsonObject();
    readout.add(kind, found);
    readouts.add(name, readout);
  }

  private static JsonObject rows(Rows rows, boolean sparse) {
    JsonObject json = Driver.json(rows.values());
    json.add("positions", GSON.toJsonTree(rows.positions()));
    if (sparse) {
      json.add("indices", GSON.toJsonTree(rows.indices()));
    }
    return json;
  }

  private static JsonObject predictions(Predictions predictions, Readout asked) {
    JsonObject json = new JsonObject();
    json.add("positions", GSON.toJsonTree(predictions.positions()));
    json.add("top_ids", GSON.toJsonTree(predictions.topIds()));
    json.add("top_texts", GSON.toJsonTree(predictions.topTexts()));
    if (asked.getPredictions().getTopK() > 0) {
      json.add("top_logprobs", Driver.json(predictions.topLogprobs()));
    }
    if (asked.getPredictions().getTokenIdsCount() > 0) {
      json.add("token_logprobs", Driver.json(predictions.tokenLogprobs()));
    }
    predictions
        .nextTokenLogprobs()
        .ifPresent(next -> json.add("next_token_logprobs", Driver.json(next)));
    return json;
  }

  private static JsonObject pattern(AttentionPattern pattern, boolean sparse) {
    JsonObject json = Driver.json(pattern.weights());
    json.add("queries", GSON.toJsonTree(pattern.queries()));
    if (sparse) {
      json.add("keys", GSON.toJsonTree(pattern.keys()));
    }
    return json;
  }

  private static JsonObject attribution(LogitAttribution attribution) {
    JsonObject json = Driver.json(attribution.contributions());
    json.add("positions", GSON.toJsonTree(attribution.positions()));
    return json;
  }

  private static JsonObject statistics(Statistics statistics) {
    JsonObject json = new JsonObject();
    json.addProperty("rows", statistics.rows());
    json.add("mean", Driver.json(statistics.mean()));
    json.add("second_moments", Driver.json(statistics.secondMoments()));
    return json;
  }

  private static <K, V> JsonObject mapped(
      Map<K, V> values, BiFunction<K, V, ? extends JsonElement> change) {
    JsonObject json = new JsonObject();
    values.forEach((key, value) -> json.add(key.toString(), change.apply(key, value)));
    return json;
  }
}
