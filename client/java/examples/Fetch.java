import dev.actserve.ActserveClient;
import dev.actserve.FetchResult;
import dev.actserve.Prompts;
import dev.actserve.Readouts;
import dev.actserve.Rows;
import dev.actserve.v1.FetchActivationsRequest;
import dev.actserve.v1.FetchItem;
import java.util.Locale;

/** Fetches a row of activations for each token of a prompt. */
public final class Fetch {
  private Fetch() {}

  /** Takes the address of a server. */
  public static void main(String[] args) {
    String target = Example.target(args);
    // [sample]
    try (ActserveClient client = ActserveClient.connect(target)) {
      FetchActivationsRequest request =
          FetchActivationsRequest.newBuilder()
              .addItems(FetchItem.newBuilder().setPrompt(Prompts.text("The capital of France is")))
              .addReadouts(Readouts.rows("acts", "all", "resid_post.15"))
              .build();
      FetchResult.Item item = client.fetchActivations(request).items().get(0);
      Rows rows = item.captured().rows("acts", "resid_post.15");
      for (int row = 0; row < rows.positions().length; row++) {
        int position = rows.positions()[row];
        double squares = 0;
        for (float element : rows.values().row(row)) {
          squares += (double) element * element;
        }
        String token = Example.quoted(item.prompt().getTexts(position));
        Example.OUT.printf(Locale.ROOT, "%d %s %.3f%n", position, token, Math.sqrt(squares));
      }
    }
    // [/sample]
  }
}
