import dev.actserve.ActserveClient;
import dev.actserve.Interventions;
import dev.actserve.Positions;
import dev.actserve.Predictions;
import dev.actserve.Prompts;
import dev.actserve.Readouts;
import dev.actserve.Sites;
import dev.actserve.v1.DeleteKeptActivationsRequest;
import dev.actserve.v1.FetchActivationsRequest;
import dev.actserve.v1.FetchItem;
import dev.actserve.v1.PredictionReadout;
import dev.actserve.v1.Readout;
import java.util.Locale;

/** Puts a row of one prompt into the run of another, without it leaving the server. */
public final class Patch {
  private static final String SITE = "resid_post.15";

  private Patch() {}

  /** Takes the address of a server. */
  public static void main(String[] args) {
    try (ActserveClient client = ActserveClient.connect(Example.target(args))) {
      // [patch]
      FetchActivationsRequest france =
          FetchActivationsRequest.newBuilder()
              .addItems(FetchItem.newBuilder().setPrompt(Prompts.text("The capital of France is")))
              .addReadouts(Readouts.keep("kept", "-1", SITE))
              .build();
      String kept = client.fetchActivations(france).items().get(0).captured().kept("kept");

      PredictionReadout likeliest =
          PredictionReadout.newBuilder()
              .addSites(Sites.parse("final_norm"))
              .setPositions(Positions.parse("last"))
              .setTopK(3)
              .build();
      FetchActivationsRequest italy =
          FetchActivationsRequest.newBuilder()
              .addItems(FetchItem.newBuilder().setPrompt(Prompts.text("The capital of Italy is")))
              .addReadouts(Readout.newBuilder().setName("next").setPredictions(likeliest))
              .addInterventions(Interventions.replace(SITE, "-1", kept))
              .build();
      Predictions next =
          client
              .fetchActivations(italy)
              .items()
              .get(0)
              .captured()
              .predictions("next", "final_norm");
      // [/patch]
      for (int rank = 0; rank < next.topTexts().size(); rank++) {
        String token = Example.quoted(next.topTexts().get(rank));
        Example.OUT.printf(Locale.ROOT, "%s %.3f%n", token, next.topLogprobs().data()[rank]);
      }
      client.deleteKeptActivations(DeleteKeptActivationsRequest.newBuilder().setName(kept).build());
    }
  }
}
