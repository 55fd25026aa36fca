import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.protobuf.Message;
import dev.actserve.ActserveClient;
import dev.actserve.AlertStream;
import dev.actserve.ResponseStream;
import dev.actserve.v1.Alert;
import dev.actserve.v1.AttributionGraph;
import dev.actserve.v1.CombineSteeringVectorsRequest;
import dev.actserve.v1.CompareActivationsRequest;
import dev.actserve.v1.CompareActivationsResponse;
import dev.actserve.v1.CreateAttributionGraphRequest;
import dev.actserve.v1.CreateMonitorRequest;
import dev.actserve.v1.CreateSteeringVectorRequest;
import dev.actserve.v1.DecideAlertRequest;
import dev.actserve.v1.DeleteAlertsRequest;
import dev.actserve.v1.DeleteAttributionGraphRequest;
import dev.actserve.v1.DeleteDictionaryRequest;
import dev.actserve.v1.DeleteExplanationBaselineRequest;
import dev.actserve.v1.DeleteKeptActivationsRequest;
import dev.actserve.v1.DeleteMonitorRequest;
import dev.actserve.v1.DeleteSteeringVectorRequest;
import dev.actserve.v1.Dictionary;
import dev.actserve.v1.ExplainActivationsRequest;
import dev.actserve.v1.ExplainActivationsResponse;
import dev.actserve.v1.ExplainTextRequest;
import dev.actserve.v1.ExplainTextResponse;
import dev.actserve.v1.FetchActivationsRequest;
import dev.actserve.v1.FetchActivationsResponse;
import dev.actserve.v1.FitMonitorRequest;
import dev.actserve.v1.GenerateRequest;
import dev.actserve.v1.GenerateResponse;
import dev.actserve.v1.GetAlertRequest;
import dev.actserve.v1.GetAttributionGraphRequest;
import dev.actserve.v1.GetDictionaryRequest;
import dev.actserve.v1.GetKeptActivationsRequest;
import dev.actserve.v1.GetModelRequest;
import dev.actserve.v1.GetMonitorRequest;
import dev.actserve.v1.GetMonitorScoresRequest;
import dev.actserve.v1.GetNlaRequest;
import dev.actserve.v1.GetSteeringVectorRequest;
import dev.actserve.v1.KeptActivations;
import dev.actserve.v1.ListAlertsRequest;
import dev.actserve.v1.ListAttributionGraphsRequest;
import dev.actserve.v1.ListDictionariesRequest;
import dev.actserve.v1.ListKeptActivationsRequest;
import dev.actserve.v1.ListModelsRequest;
import dev.actserve.v1.ListMonitorsRequest;
import dev.actserve.v1.ListNlasRequest;
import dev.actserve.v1.ListSteeringVectorsRequest;
import dev.actserve.v1.MakeSteeringVectorRequest;
import dev.actserve.v1.MeasureHeadsRequest;
import dev.actserve.v1.MeasureHeadsResponse;
import dev.actserve.v1.Model;
import dev.actserve.v1.Monitor;
import dev.actserve.v1.Nla;
import dev.actserve.v1.ReconstructActivationsRequest;
import dev.actserve.v1.ReconstructActivationsResponse;
import dev.actserve.v1.ReplayMonitorsRequest;
import dev.actserve.v1.ReplayMonitorsResponse;
import dev.actserve.v1.RunSweepRequest;
import dev.actserve.v1.RunSweepResponse;
import dev.actserve.v1.ScoreExplanationsRequest;
import dev.actserve.v1.SetExplanationBaselineRequest;
import dev.actserve.v1.SetFeatureLabelsRequest;
import dev.actserve.v1.SteeringVector;
import dev.actserve.v1.TokenizeRequest;
import dev.actserve.v1.UpdateMonitorRequest;
import dev.actserve.v1.UpdateSteeringVectorRequest;
import dev.actserve.v1.WatchAlertsRequest;
import dev.actserve.v1.WatchAttributionGraphRequest;
import dev.actserve.v1.WatchAttributionGraphResponse;
import java.util.Locale;
import java.util.concurrent.CompletableFuture;
import java.util.function.Function;
import java.util.stream.StreamSupport;

/** The methods of the client, by the names of the contract. */
final class Methods {
  private Methods() {}

  static Message unary(ActserveClient client, String method, JsonElement json) throws Exception {
    return switch (method) {
      case "GetModel" -> client.getModel(read(json, GetModelRequest.newBuilder()).build());
      case "Tokenize" -> client.tokenize(read(json, TokenizeRequest.newBuilder()).build());
      case "GetKeptActivations" ->
          client.getKeptActivations(read(json, GetKeptActivationsRequest.newBuilder()).build());
      case "DeleteKeptActivations" ->
          client.deleteKeptActivations(
              read(json, DeleteKeptActivationsRequest.newBuilder()).build());
      case "GetNla" -> client.getNla(read(json, GetNlaRequest.newBuilder()).build());
      case "ScoreExplanations" ->
          client.scoreExplanations(read(json, ScoreExplanationsRequest.newBuilder()).build());
      case "SetExplanationBaseline" ->
          client.setExplanationBaseline(
              read(json, SetExplanationBaselineRequest.newBuilder()).build());
      case "DeleteExplanationBaseline" ->
          client.deleteExplanationBaseline(
              read(json, DeleteExplanationBaselineRequest.newBuilder()).build());
      case "CreateSteeringVector" ->
          client.createSteeringVector(read(json, CreateSteeringVectorRequest.newBuilder()).build());
      case "MakeSteeringVector" ->
          client.makeSteeringVector(read(json, MakeSteeringVectorRequest.newBuilder()).build());
      case "CombineSteeringVectors" ->
          client.combineSteeringVectors(
              read(json, CombineSteeringVectorsRequest.newBuilder()).build());
      case "GetSteeringVector" ->
          client.getSteeringVector(read(json, GetSteeringVectorRequest.newBuilder()).build());
      case "UpdateSteeringVector" ->
          client.updateSteeringVector(read(json, UpdateSteeringVectorRequest.newBuilder()).build());
      case "DeleteSteeringVector" ->
          client.deleteSteeringVector(read(json, DeleteSteeringVectorRequest.newBuilder()).build());
      case "GetDictionary" ->
          client.getDictionary(read(json, GetDictionaryRequest.newBuilder()).build());
      case "DeleteDictionary" ->
          client.deleteDictionary(read(json, DeleteDictionaryRequest.newBuilder()).build());
      case "SetFeatureLabels" ->
          client.setFeatureLabels(read(json, SetFeatureLabelsRequest.newBuilder()).build());
      case "CreateAttributionGraph" ->
          client.createAttributionGraph(
              read(json, CreateAttributionGraphRequest.newBuilder()).build());
      case "GetAttributionGraph" ->
          client.getAttributionGraph(read(json, GetAttributionGraphRequest.newBuilder()).build());
      case "DeleteAttributionGraph" ->
          client.deleteAttributionGraph(
              read(json, DeleteAttributionGraphRequest.newBuilder()).build());
      case "CreateMonitor" ->
          client.createMonitor(read(json, CreateMonitorRequest.newBuilder()).build());
      case "GetMonitor" -> client.getMonitor(read(json, GetMonitorRequest.newBuilder()).build());
      case "UpdateMonitor" ->
          client.updateMonitor(read(json, UpdateMonitorRequest.newBuilder()).build());
      case "DeleteMonitor" ->
          client.deleteMonitor(read(json, DeleteMonitorRequest.newBuilder()).build());
      case "FitMonitor" -> client.fitMonitor(read(json, FitMonitorRequest.newBuilder()).build());
      case "GetMonitorScores" ->
          client.getMonitorScores(read(json, GetMonitorScoresRequest.newBuilder()).build());
      case "GetAlert" -> client.getAlert(read(json, GetAlertRequest.newBuilder()).build());
      case "DecideAlert" -> client.decideAlert(read(json, DecideAlertRequest.newBuilder()).build());
      case "DeleteAlerts" ->
          client.deleteAlerts(read(json, DeleteAlertsRequest.newBuilder()).build());
      default -> throw unknown(method);
    };
  }

  /** The names of what is listed. */
  static Iterable<String> list(ActserveClient client, String method, JsonElement json)
      throws Exception {
    return switch (method) {
      case "ListModels" ->
          names(
              client.listModels(read(json, ListModelsRequest.newBuilder()).build()),
              Model::getName);
      case "ListNlas" ->
          names(client.listNlas(read(json, ListNlasRequest.newBuilder()).build()), Nla::getName);
      case "ListKeptActivations" ->
          names(
              client.listKeptActivations(
                  read(json, ListKeptActivationsRequest.newBuilder()).build()),
              KeptActivations::getName);
      case "ListSteeringVectors" ->
          names(
              client.listSteeringVectors(
                  read(json, ListSteeringVectorsRequest.newBuilder()).build()),
              SteeringVector::getName);
      case "ListDictionaries" ->
          names(
              client.listDictionaries(read(json, ListDictionariesRequest.newBuilder()).build()),
              Dictionary::getName);
      case "ListAttributionGraphs" ->
          names(
              client.listAttributionGraphs(
                  read(json, ListAttributionGraphsRequest.newBuilder()).build()),
              AttributionGraph::getName);
      case "ListMonitors" ->
          names(
              client.listMonitors(read(json, ListMonitorsRequest.newBuilder()).build()),
              Monitor::getName);
      case "ListAlerts" ->
          names(
              client.listAlerts(read(json, ListAlertsRequest.newBuilder()).build()),
              Alert::getName);
      default -> throw unknown(method);
    };
  }

  private static <T> Iterable<String> names(Iterable<T> listed, Function<T, String> name) {
    return () -> StreamSupport.stream(listed.spliterator(), false).map(name).iterator();
  }

  static ResponseStream<?> stream(ActserveClient client, String method, JsonElement json)
      throws Exception {
    return switch (method) {
      case "FetchActivations" ->
          client.streamFetchActivations(read(json, FetchActivationsRequest.newBuilder()).build());
      case "Generate" -> client.streamGenerate(read(json, GenerateRequest.newBuilder()).build());
      case "ExplainActivations" ->
          client.streamExplainActivations(
              read(json, ExplainActivationsRequest.newBuilder()).build());
      case "ExplainText" ->
          client.streamExplainText(read(json, ExplainTextRequest.newBuilder()).build());
      case "CompareActivations" ->
          client.streamCompareActivations(
              read(json, CompareActivationsRequest.newBuilder()).build());
      case "ReconstructActivations" ->
          client.streamReconstructActivations(
              read(json, ReconstructActivationsRequest.newBuilder()).build());
      case "MeasureHeads" ->
          client.streamMeasureHeads(read(json, MeasureHeadsRequest.newBuilder()).build());
      case "WatchAttributionGraph" ->
          client.streamWatchAttributionGraph(
              read(json, WatchAttributionGraphRequest.newBuilder()).build());
      case "RunSweep" -> client.streamRunSweep(read(json, RunSweepRequest.newBuilder()).build());
      case "ReplayMonitors" ->
          client.streamReplayMonitors(read(json, ReplayMonitorsRequest.newBuilder()).build());
      default -> throw unknown(method);
    };
  }

  /** The name of the event that a response is. */
  static String event(Object response) {
    Enum<?> event;
    if (response instanceof FetchActivationsResponse fetched) {
      event = fetched.getEventCase();
    } else if (response instanceof GenerateResponse generated) {
      event = generated.getEventCase();
    } else if (response instanceof ExplainActivationsResponse explained) {
      event = explained.getEvent().getEventCase();
    } else if (response instanceof ExplainTextResponse explained) {
      event = explained.getEvent().getEventCase();
    } else if (response instanceof CompareActivationsResponse explained) {
      event = explained.getEvent().getEventCase();
    } else if (response instanceof RunSweepResponse swept) {
      event = swept.getEventCase();
    } else if (response instanceof MeasureHeadsResponse measured) {
      event = measured.getEventCase();
    } else if (response instanceof WatchAttributionGraphResponse watched) {
      event = watched.getEventCase();
    } else if (response instanceof ReplayMonitorsResponse replayed) {
      event = replayed.getEventCase();
    } else {
      event = ((ReconstructActivationsResponse) response).getEventCase();
    }
    String name = event.name().toLowerCase(Locale.ROOT);
    return name.equals("event_not_set") ? "unknown" : name;
  }

  static CompletableFuture<JsonObject> collect(
      ActserveClient client, String method, JsonElement json) throws Exception {
    return switch (method) {
      case "FetchActivations" -> {
        var request = read(json, FetchActivationsRequest.newBuilder()).build();
        yield mapped(client.fetchActivationsAsync(request), result -> Results.of(result, request));
      }
      case "Generate" -> {
        var request = read(json, GenerateRequest.newBuilder()).build();
        yield mapped(client.generateAsync(request), result -> Results.of(result, request));
      }
      case "ExplainActivations" ->
          mapped(
              client.explainActivationsAsync(
                  read(json, ExplainActivationsRequest.newBuilder()).build()),
              Results::of);
      case "ExplainText" ->
          mapped(
              client.explainTextAsync(read(json, ExplainTextRequest.newBuilder()).build()),
              Results::of);
      case "CompareActivations" ->
          mapped(
              client.compareActivationsAsync(
                  read(json, CompareActivationsRequest.newBuilder()).build()),
              Results::of);
      case "ReconstructActivations" ->
          mapped(
              client.reconstructActivationsAsync(
                  read(json, ReconstructActivationsRequest.newBuilder()).build()),
              Results::of);
      case "MeasureHeads" ->
          mapped(
              client.measureHeadsAsync(read(json, MeasureHeadsRequest.newBuilder()).build()),
              Studies::of);
      case "WatchAttributionGraph" ->
          mapped(
              client.watchAttributionGraphAsync(
                  read(json, WatchAttributionGraphRequest.newBuilder()).build()),
              Studies::of);
      case "RunSweep" ->
          mapped(
              client.runSweepAsync(read(json, RunSweepRequest.newBuilder()).build()), Results::of);
      case "ReplayMonitors" ->
          mapped(
              client.replayMonitorsAsync(read(json, ReplayMonitorsRequest.newBuilder()).build()),
              Results::of);
      default -> throw unknown(method);
    };
  }

  /** Begins a graph, and waits for it. */
  static JsonObject graph(ActserveClient client, JsonElement json) throws Exception {
    var request = read(json, CreateAttributionGraphRequest.newBuilder()).build();
    String name = client.createAttributionGraph(request).getAttributionGraph().getName();
    return Studies.of(client.waitForAttributionGraph(name));
  }

  /** What a future becomes; to cancel that cancels the future, which `thenApply` alone does not. */
  private static <T> CompletableFuture<JsonObject> mapped(
      CompletableFuture<T> future, Function<T, JsonObject> change) {
    CompletableFuture<JsonObject> changed = future.thenApply(change);
    changed.whenComplete(
        (result, error) -> {
          if (changed.isCancelled()) {
            future.cancel(true);
          }
        });
    return changed;
  }

  static AlertStream watch(ActserveClient client, JsonElement json) throws Exception {
    return client.watchAlerts(read(json, WatchAlertsRequest.newBuilder()).build());
  }

  private static <B extends Message.Builder> B read(JsonElement json, B builder) throws Exception {
    return Driver.message(json, builder);
  }

  private static IllegalArgumentException unknown(String method) {
    return new IllegalArgumentException("the client has no such method: " + method);
  }
}
