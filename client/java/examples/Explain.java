import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import dev.actserve.ActserveClient;
import dev.actserve.Positions;
import dev.actserve.Prompts;
import dev.actserve.v1.ExplainSpec;
import dev.actserve.v1.ExplainTextRequest;
import dev.actserve.v1.Explanation;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.Locale;

/** Asks in words what a model thinks at the last token of a prompt. */
public final class Explain {
  private static final Gson JSON = new GsonBuilder().disableHtmlEscaping().create();

  private Explain() {}

  /** Takes the address of a server. */
  public static void main(String[] args) {
    System.setOut(new PrintStream(System.out, true, StandardCharsets.UTF_8));
    String address = args.length > 0 ? args[0] : "localhost:50051";
    try (ActserveClient client = ActserveClient.connect(address)) {
      // [sample]
      ExplainTextRequest request =
          ExplainTextRequest.newBuilder()
              .setPrompt(Prompts.text("The capital of France is"))
              .setPositions(Positions.parse("last"))
              .setSpec(ExplainSpec.newBuilder().setTemperature(0).setMaxTokens(32).setScore(true))
              .build();
      for (Explanation explanation : client.explainText(request).explanations()) {
        String text = JSON.toJson(explanation.getText());
        float cosine = explanation.getScore().getCosine();
        System.out.printf(Locale.ROOT, "%s %.2f%n", text, cosine);
      }
      // [/sample]
    }
  }
}
