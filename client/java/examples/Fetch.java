import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import dev.actserve.ActserveClient;
import dev.actserve.FetchResult;
import dev.actserve.Prompts;
import dev.actserve.Readouts;
import dev.actserve.Rows;
import dev.actserve.v1.FetchActivationsRequest;
import dev.actserve.v1.FetchItem;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.Locale;

/** Reads activations: how long the residual stream is at each token of a prompt. */
public final class Fetch {
  private static final Gson JSON = new GsonBuilder().disableHtmlEscaping().create();

  private Fetch() {}

  /** Takes the address of a server. */
  public static void main(String[] args) {
    System.setOut(new PrintStream(System.out, true, StandardCharsets.UTF_8));
    String address = args.length > 0 ? args[0] : "localhost:50051";
    // [sample]
    try (ActserveClient client = ActserveClient.connect(address)) {
      FetchActivationsRequest request =
          FetchActivationsRequest.newBuilder()
              .addItems(FetchItem.newBuilder().setPrompt(Prompts.text("The capital of France is")))
              .addReadouts(Readouts.rows("acts", "all", "resid_post.15"))
              .build();
      FetchResult.Item item = client.fetchActivations(request).items().get(0);
      Rows rows = item.captured().rows("acts", "resid_post.15");
      for (int row = 0; row < rows.positions().length; row++) {
        String token = item.prompt().getTexts(rows.positions()[row]);
        print(rows.positions()[row], token, rows.values().row(row));
      }
    }
    // [/sample]
  }

  private static void print(int position, String token, float[] row) {
    double squares = 0;
    for (float element : row) {
      squares += (double) element * element;
    }
    System.out.printf(
        Locale.ROOT, "%d %s %.3f%n", position, JSON.toJson(token), Math.sqrt(squares));
  }
}
