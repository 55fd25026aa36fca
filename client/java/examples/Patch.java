import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import dev.actserve.ActserveClient;
import dev.actserve.Interventions;
import dev.actserve.Predictions;
import dev.actserve.Prompts;
import dev.actserve.Readouts;
import dev.actserve.v1.DeleteKeptActivationsRequest;
import dev.actserve.v1.FetchActivationsRequest;
import dev.actserve.v1.FetchItem;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.Locale;

/** Puts a row of one prompt into the run of another, without it leaving the server. */
public final class Patch {
  private static final Gson JSON = new GsonBuilder().disableHtmlEscaping().create();
  private static final String SITE = "resid_post.15";

  private Patch() {}

  /** Takes the address of a server. */
  public static void main(String[] args) {
    System.setOut(new PrintStream(System.out, true, StandardCharsets.UTF_8));
    String address = args.length > 0 ? args[0] : "localhost:50051";
    try (ActserveClient client = ActserveClient.connect(address)) {
      // [sample]
      FetchActivationsRequest france =
          FetchActivationsRequest.newBuilder()
              .addItems(FetchItem.newBuilder().setPrompt(Prompts.text("The capital of France is")))
              .addReadouts(Readouts.keep("kept", "-1", SITE))
              .build();
      String kept = client.fetchActivations(france).items().get(0).captured().kept("kept");

      FetchActivationsRequest italy =
          FetchActivationsRequest.newBuilder()
              .addItems(FetchItem.newBuilder().setPrompt(Prompts.text("The capital of Italy is")))
              .addReadouts(Readouts.predictions("next", "last", 3, "final_norm"))
              .addInterventions(Interventions.replace(SITE, "-1", kept))
              .build();
      Predictions next =
          client
              .fetchActivations(italy)
              .items()
              .get(0)
              .captured()
              .predictions("next", "final_norm");
      // [/sample]
      for (int rank = 0; rank < next.topTexts(0).size(); rank++) {
        String token = JSON.toJson(next.topTexts(0).get(rank));
        System.out.printf(Locale.ROOT, "%s %.3f%n", token, next.topLogprobs().data()[rank]);
      }
      client.deleteKeptActivations(DeleteKeptActivationsRequest.newBuilder().setName(kept).build());
    }
  }
}
