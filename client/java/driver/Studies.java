import com.google.gson.Gson;
import com.google.gson.JsonArray;
import com.google.gson.JsonObject;
import dev.actserve.GraphResult;
import dev.actserve.HeadPattern;
import dev.actserve.HeadsResult;
import dev.actserve.v1.AttributionNode;
import dev.actserve.v1.HeadMetrics;
import dev.actserve.v1.TokenWeight;
import java.util.List;
import java.util.Map;
import java.util.function.Function;

/** What was measured of heads, and graphs, as the conformance tests want them. */
final class Studies {
  private static final Gson GSON = new Gson();

  private static final Map<String, Function<HeadMetrics, Float>> MEANS =
      Map.of(
          "previous_token", HeadMetrics::getPreviousToken,
          "current_token", HeadMetrics::getCurrentToken,
          "first_token", HeadMetrics::getFirstToken,
          "induction", HeadMetrics::getInduction,
          "duplicate_token", HeadMetrics::getDuplicateToken,
          "entropy", HeadMetrics::getEntropy,
          "distance", HeadMetrics::getDistance,
          "distance_variance", HeadMetrics::getDistanceVariance);

  private Studies() {}

  static JsonObject of(HeadsResult result) {
    List<HeadMetrics> every = result.heads().stream().flatMap(List::stream).toList();
    int[] shape = {result.layers().size(), every.size() / result.layers().size()};
    JsonObject means = new JsonObject();
    MEANS.forEach((name, mean) -> means.add(name, Driver.json(shape, floats(every, mean))));
    JsonArray queryTokens = new JsonArray();
    JsonArray keyTokens = new JsonArray();
    for (HeadMetrics each : every) {
      queryTokens.add(tokens(each.getTopQueryTokensList()));
      keyTokens.add(tokens(each.getTopKeyTokensList()));
    }
    JsonArray items = new JsonArray();
    for (HeadsResult.Item item : result.items()) {
      JsonObject told = new JsonObject();
      told.addProperty("index", items.size());
      told.addProperty("key", item.key());
      if (item.error().isPresent()) {
        told.add("error", Driver.json(item.error().get()));
      } else {
        told.add("token_ids", GSON.toJsonTree(item.prompt().getIdsList()));
        told.add("patterns", patterns(item.patterns()));
      }
      items.add(told);
    }
    JsonObject json = new JsonObject();
    json.addProperty("call_id", result.callId());
    json.add("layers", GSON.toJsonTree(result.layers()));
    json.addProperty("queries", every.get(0).getQueries());
    json.add("means", means);
    json.add("query_tokens", queryTokens);
    json.add("key_tokens", keyTokens);
    json.add("items", items);
    return json;
  }

  private static JsonObject tokens(List<TokenWeight> tokens) {
    JsonObject told = vector(floats(tokens, TokenWeight::getWeight));
    told.add("ids", GSON.toJsonTree(tokens.stream().map(TokenWeight::getTokenId).toList()));
    told.add("texts", GSON.toJsonTree(tokens.stream().map(TokenWeight::getText).toList()));
    return told;
  }

  private static JsonObject patterns(Map<Integer, Map<Integer, HeadPattern>> patterns) {
    JsonObject told = new JsonObject();
    patterns.forEach(
        (layer, heads) ->
            heads.forEach(
                (head, pattern) -> {
                  JsonObject weights = vector(pattern.weights());
                  weights.add("queries", GSON.toJsonTree(pattern.queries()));
                  weights.add("keys", GSON.toJsonTree(pattern.keys()));
                  told.add(layer + "." + head, weights);
                }));
    return told;
  }

  static JsonObject of(GraphResult graph) {
    JsonArray nodes = new JsonArray();
    float[] activations = new float[graph.nodes().size()];
    for (AttributionNode node : graph.nodes()) {
      activations[nodes.size()] = activation(node);
      JsonObject told = new JsonObject();
      told.addProperty("kind", kind(node));
      told.add("of", GSON.toJsonTree(of(node)));
      told.addProperty("position", node.getPosition());
      nodes.add(told);
    }
    JsonObject json = new JsonObject();
    json.add("nodes", nodes);
    json.add("influences", vector(floats(graph.nodes(), AttributionNode::getInfluence)));
    json.add("activations", vector(activations));
    json.add("sources", GSON.toJsonTree(graph.sources()));
    json.add("targets", GSON.toJsonTree(graph.targets()));
    json.add("weights", vector(graph.weights()));
    return json;
  }

  private static String kind(AttributionNode node) {
    return switch (node.getKindCase()) {
      case EMBEDDING -> "embedding";
      case NEURON -> "neuron";
      case FEATURE -> "feature";
      case RECONSTRUCTION_ERROR -> "error";
      case LOGIT -> "logit";
      case KIND_NOT_SET -> "unknown";
    };
  }

  /** What names it among those of its kind. */
  private static int[] of(AttributionNode node) {
    return switch (node.getKindCase()) {
      case EMBEDDING -> new int[] {node.getEmbedding().getTokenId()};
      case NEURON -> new int[] {node.getNeuron().getLayer(), node.getNeuron().getNeuron()};
      case FEATURE ->
          new int[] {node.getFeature().getDictionaryIndex(), node.getFeature().getFeatureIndex()};
      case RECONSTRUCTION_ERROR -> new int[] {node.getReconstructionError().getDictionaryIndex()};
      case LOGIT -> new int[] {node.getLogit().getTokenId()};
      case KIND_NOT_SET -> new int[] {};
    };
  }

  /** Its activation or probability. */
  private static float activation(AttributionNode node) {
    return switch (node.getKindCase()) {
      case NEURON -> node.getNeuron().getActivation();
      case FEATURE -> node.getFeature().getActivation();
      case LOGIT -> node.getLogit().getProbability();
      default -> 0;
    };
  }

  private static JsonObject vector(float... values) {
    return Driver.json(new int[] {values.length}, values);
  }

  private static <T> float[] floats(List<T> all, Function<T, Float> each) {
    float[] values = new float[all.size()];
    for (int index = 0; index < values.length; index++) {
      values[index] = each.apply(all.get(index));
    }
    return values;
  }
}
