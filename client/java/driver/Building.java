import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import dev.actserve.Interventions;
import dev.actserve.Probes;
import dev.actserve.Vectors;
import dev.actserve.v1.Condition;
import dev.actserve.v1.Intervention;
import dev.actserve.v1.Probe;
import dev.actserve.v1.VectorSource;

/** Interventions, made by the client's helpers. */
final class Building {
  private Building() {}

  static Intervention add(JsonObject question) throws Exception {
    String[] sites =
        question.getAsJsonArray("sites").asList().stream()
            .map(JsonElement::getAsString)
            .toArray(String[]::new);
    VectorSource vector = vector(question.get("vector"));
    Intervention add =
        question.has("coefficient")
            ? Interventions.add(vector, question.get("coefficient").getAsFloat(), sites)
            : Interventions.add(vector, sites);
    return question.has("when")
        ? add.toBuilder().setWhen(condition(question.getAsJsonObject("when"))).build()
        : add;
  }

  /** One to send along, or the name of a stored one. */
  private static VectorSource vector(JsonElement asked) {
    return asked.isJsonPrimitive()
        ? Vectors.stored(asked.getAsString())
        : Vectors.sent(Driver.floats(asked.getAsJsonObject().get("data").getAsString()));
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
