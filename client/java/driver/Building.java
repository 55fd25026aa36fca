import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import dev.actserve.Features;
import dev.actserve.Interventions;
import dev.actserve.Probes;
import dev.actserve.Readouts;
import dev.actserve.Vectors;
import dev.actserve.v1.Condition;
import dev.actserve.v1.FeatureChange;
import dev.actserve.v1.Intervention;
import dev.actserve.v1.Probe;
import dev.actserve.v1.Readout;
import dev.actserve.v1.VectorSource;
import java.util.ArrayList;
import java.util.List;
import java.util.function.BiConsumer;

/** Interventions and readouts, made by the client's helpers. */
final class Building {
  private Building() {}

  static Intervention add(JsonObject question) throws Exception {
    String[] sites = sites(question);
    VectorSource vector = vector(question.get("vector"));
    Intervention add =
        question.has("coefficient")
            ? Interventions.add(vector, question.get("coefficient").getAsFloat(), sites)
            : Interventions.add(vector, sites);
    return question.has("when")
        ? add.toBuilder().setWhen(condition(question.getAsJsonObject("when"))).build()
        : add;
  }

  static Intervention features(JsonObject question) {
    List<FeatureChange> changes = new ArrayList<>();
    numbers(question, "values", (index, value) -> changes.add(Features.set(index, value)));
    numbers(question, "additions", (index, value) -> changes.add(Features.add(index, value)));
    numbers(question, "factors", (index, value) -> changes.add(Features.scale(index, value)));
    return Interventions.features(
        question.get("dictionary").getAsString(), changes, sites(question));
  }

  private static void numbers(JsonObject question, String kind, BiConsumer<Integer, Float> add) {
    if (question.has(kind)) {
      question
          .getAsJsonObject(kind)
          .entrySet()
          .forEach(
              each -> add.accept(Integer.valueOf(each.getKey()), each.getValue().getAsFloat()));
    }
  }

  static Readout featureReadout(JsonObject question) {
    String name = question.get("name").getAsString();
    String positions = question.get("positions").getAsString();
    String dictionary = question.get("dictionary").getAsString();
    return question.has("top")
        ? Readouts.topFeatures(
            name, positions, dictionary, question.get("top").getAsInt(), sites(question))
        : Readouts.features(name, positions, dictionary, sites(question));
  }

  private static String[] sites(JsonObject question) {
    return question.getAsJsonArray("sites").asList().stream()
        .map(JsonElement::getAsString)
        .toArray(String[]::new);
  }

  /** One to send along, the name of a stored one, or a feature of a dictionary. */
  private static VectorSource vector(JsonElement asked) {
    if (asked.isJsonPrimitive()) {
      return Vectors.stored(asked.getAsString());
    }
    JsonObject vector = asked.getAsJsonObject();
    return vector.has("dictionary")
        ? Vectors.feature(vector.get("dictionary").getAsString(), vector.get("index").getAsInt())
        : Vectors.sent(Driver.floats(vector.get("data").getAsString()));
  }

  private static Condition condition(JsonObject asked) throws Exception {
    Probe probe = Probes.linear(asked.get("site").getAsString(), vector(asked.get("direction")));
    if (asked.has("bias")) {
      probe = probe.toBuilder().setBias(asked.get("bias").getAsFloat()).build();
    }
    Condition.Builder condition;
    if (asked.has("above")) {
      condition = Probes.above(probe, asked.get("above").getAsFloat()).toBuilder();
      if (asked.has("below")) {
        condition.setBelow(asked.get("below").getAsFloat());
      }
    } else {
      condition = Probes.below(probe, asked.get("below").getAsFloat()).toBuilder();
    }
    if (asked.has("aggregator")) {
      Driver.message(asked.get("aggregator"), condition.getAggregatorBuilder());
    }
    return condition.build();
  }
}
