import dev.actserve.ActserveClient;
import dev.actserve.Positions;
import dev.actserve.Prompts;
import dev.actserve.v1.ExplainSpec;
import dev.actserve.v1.ExplainTextRequest;
import dev.actserve.v1.Explanation;
import java.util.Locale;

/** Asks in words what a model thinks at the last token of a prompt. */
public final class Explain {
  private Explain() {}

  /** Takes the address of a server. */
  public static void main(String[] args) {
    try (ActserveClient client = ActserveClient.connect(Example.target(args))) {
      // [explain]
      ExplainTextRequest request =
          ExplainTextRequest.newBuilder()
              .setPrompt(Prompts.text("The capital of France is"))
              .setPositions(Positions.parse("last"))
              .setSpec(ExplainSpec.newBuilder().setTemperature(0).setMaxTokens(32).setScore(true))
              .build();
      for (Explanation explanation : client.explainText(request).explanations()) {
        String text = Example.quoted(explanation.getText());
        float cosine = explanation.getScore().getCosine();
        Example.OUT.printf(Locale.ROOT, "%s %.2f%n", text, cosine);
      }
      // [/explain]
    }
  }
}
