package dev.actserve;

import dev.actserve.v1.ElementType;
import dev.actserve.v1.FetchActivationsRequest;
import dev.actserve.v1.FetchItem;
import dev.actserve.v1.Intervention;
import dev.actserve.v1.PositionSelector;
import dev.actserve.v1.Readout;
import dev.actserve.v1.TokenizeRequest;
import dev.actserve.v1.ZeroOperation;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.IntStream;
import java.util.stream.Stream;

/** Finds what features do to logits by themselves. */
final class LogitEffects {
  /**
   * How much of a feature makes up the row whose logits are read: enough for the small number that
   * norms add to the square of a row to be nothing beside it.
   */
  private static final float DOSE = 10;

  private static final String LAST_RESIDUAL = "resid_post.-1";

  private LogitEffects() {}

  static List<LogitEffect> find(ActserveClient client, String dictionary, int[] features, int k) {
    FetchActivationsRequest request = request(dictionary, features);
    FetchResult fetched = client.fetchActivations(request);
    // Of nothing, logits are not zero where norms have biases.
    float[] nothing = fetched.items().get(0).captured().rows("row", "logits").values().data();
    List<LogitEffect> effects = new ArrayList<>();
    for (int index = 0; index < features.length; index++) {
      Captured read = fetched.items().get(index + 1).captured();
      float[] logits = read.rows("row", "logits").values().data();
      float[] written = read.rows("row", LAST_RESIDUAL).values().data();
      effects.add(strongest(features[index], logits, nothing, written, k));
    }
    return named(client, request.getModel(), effects);
  }

  /**
   * Reads the logits of a row that is zero, and of one that is each feature alone, in place of the
   * last row of the residual stream.
   */
  private static FetchActivationsRequest request(String dictionary, int[] features) {
    PositionSelector last = Positions.parse("last");
    Intervention clear =
        Intervention.newBuilder()
            .addSites(Sites.parse(LAST_RESIDUAL))
            .setPositions(last)
            .setZero(ZeroOperation.getDefaultInstance())
            .build();
    Readout.Builder readout = Readouts.rows("row", "last", LAST_RESIDUAL, "logits").toBuilder();
    readout.getRowsBuilder().setElementType(ElementType.ELEMENT_TYPE_F32);
    FetchActivationsRequest.Builder request =
        FetchActivationsRequest.newBuilder()
            .setModel(dictionary.split("/dictionaries/", 2)[0])
            .addReadouts(readout)
            .addItems(item(clear))
            .setFailFast(true);
    for (int feature : features) {
      Intervention add =
          Interventions.add(Vectors.feature(dictionary, feature), DOSE, LAST_RESIDUAL);
      request.addItems(item(clear, add.toBuilder().setPositions(last).build()));
    }
    return request.build();
  }

  private static FetchItem item(Intervention... interventions) {
    return FetchItem.newBuilder()
        .setPrompt(Prompts.tokenIds(0))
        .addAllInterventions(List.of(interventions))
        .build();
  }

  /** The tokens that are raised and lowered most, without their texts. */
  private static LogitEffect strongest(
      int feature, float[] logits, float[] nothing, float[] written, int k) {
    double squares = 0;
    for (float element : written) {
      squares += (double) element * element;
    }
    double scale = Math.sqrt(squares / written.length) / DOSE;
    List<LogitEffect.Token> tokens =
        new ArrayList<>(
            IntStream.range(0, logits.length)
                .mapToObj(id -> token(id, logits[id] - nothing[id], scale))
                .toList());
    tokens.sort(Comparator.comparingDouble(token -> -token.effect()));
    int count = Math.max(0, Math.min(k, tokens.size()));
    List<LogitEffect.Token> top = List.copyOf(tokens.subList(0, count));
    List<LogitEffect.Token> bottom =
        IntStream.range(0, count).mapToObj(index -> tokens.get(tokens.size() - 1 - index)).toList();
    return new LogitEffect(feature, top, bottom);
  }

  private static LogitEffect.Token token(int id, float difference, double scale) {
    return new LogitEffect.Token(id, "", (float) (difference * scale));
  }

  /** The effects with the texts of their tokens. */
  private static List<LogitEffect> named(
      ActserveClient client, String model, List<LogitEffect> effects) {
    int[] ids =
        effects.stream()
            .flatMap(effect -> Stream.concat(effect.top().stream(), effect.bottom().stream()))
            .mapToInt(LogitEffect.Token::id)
            .distinct()
            .sorted()
            .toArray();
    if (ids.length == 0) {
      return effects;
    }
    TokenizeRequest request =
        TokenizeRequest.newBuilder().setModel(model).setPrompt(Prompts.tokenIds(ids)).build();
    List<String> found = client.tokenize(request).getPrompt().getTextsList();
    if (found.size() != ids.length) {
      throw ActserveException.badResponse(
          "the server sent %s texts of %s tokens", found.size(), ids.length);
    }
    Map<Integer, String> texts = new TreeMap<>();
    for (int index = 0; index < ids.length; index++) {
      texts.put(ids[index], found.get(index));
    }
    return effects.stream()
        .map(
            effect ->
                new LogitEffect(
                    effect.feature(), named(effect.top(), texts), named(effect.bottom(), texts)))
        .toList();
  }

  private static List<LogitEffect.Token> named(
      List<LogitEffect.Token> tokens, Map<Integer, String> texts) {
    return tokens.stream()
        .map(token -> new LogitEffect.Token(token.id(), texts.get(token.id()), token.effect()))
        .toList();
  }
}
