import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import dev.actserve.ActserveClient;
import dev.actserve.Captured;
import dev.actserve.FetchResult;
import dev.actserve.Interventions;
import dev.actserve.Prompts;
import dev.actserve.Readouts;
import dev.actserve.v1.FetchActivationsRequest;
import dev.actserve.v1.FetchItem;
import dev.actserve.v1.GenerateRequest;
import dev.actserve.v1.SamplingParams;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;

/** Steers what a model writes by the difference of two texts. */
public final class Steer {
  private static final Gson JSON = new GsonBuilder().disableHtmlEscaping().create();
  private static final String SITE = "resid_post.15";

  private Steer() {}

  /** Takes the address of a server. */
  public static void main(String[] args) {
    System.setOut(new PrintStream(System.out, true, StandardCharsets.UTF_8));
    String address = args.length > 0 ? args[0] : "localhost:50051";
    try (ActserveClient client = ActserveClient.connect(address)) {
      FetchResult texts =
          client.fetchActivations(
              FetchActivationsRequest.newBuilder()
                  .addItems(
                      FetchItem.newBuilder().setPrompt(Prompts.text("I loved it, wonderful!")))
                  .addItems(FetchItem.newBuilder().setPrompt(Prompts.text("I hated it, terrible!")))
                  .addReadouts(Readouts.rows("acts", "last", SITE))
                  .build());
      float[] mood = difference(texts.items().get(0).captured(), texts.items().get(1).captured());

      // [sample]
      GenerateRequest plain =
          GenerateRequest.newBuilder()
              .setPrompt(Prompts.text("I think the movie was"))
              .setSampling(SamplingParams.newBuilder().setTemperature(0).setMaxTokens(20))
              .build();
      GenerateRequest steered =
          plain.toBuilder().addInterventions(Interventions.add(SITE, mood, 2)).build();
      // [/sample]
      print("plain", client, plain);
      print("steered", client, steered);
    }
  }

  private static float[] difference(Captured liked, Captured hated) {
    float[] difference = liked.rows("acts", SITE).values().row(0);
    float[] other = hated.rows("acts", SITE).values().row(0);
    for (int index = 0; index < difference.length; index++) {
      difference[index] -= other[index];
    }
    return difference;
  }

  private static void print(String how, ActserveClient client, GenerateRequest request) {
    String text = client.generate(request).samples().get(0).text();
    System.out.println(how + ": " + JSON.toJson(text));
  }
}
