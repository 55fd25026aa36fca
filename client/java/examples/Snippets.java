import dev.actserve.ActserveClient;
import dev.actserve.ActserveException;
import dev.actserve.GenerateResult;
import dev.actserve.Prompts;
import dev.actserve.ResponseStream;
import dev.actserve.v1.GenerateRequest;
import dev.actserve.v1.GenerateResponse;
import dev.actserve.v1.Model;
import dev.actserve.v1.ReadTokenRowsRequest;
import dev.actserve.v1.WeightServiceGrpc;
import java.nio.file.Path;
import java.time.Duration;
import java.util.concurrent.CompletableFuture;

/** The snippets of the README that are no whole example. They are compiled. */
final class Snippets {
  private Snippets() {}

  static ActserveClient connect(String token) {
    // [sample]
    ActserveClient client =
        ActserveClient.builder("one.example.com:50051", "two.example.com:50051")
            .tls(Path.of("authority.pem"))
            .clientCertificate(Path.of("client.pem"), Path.of("client.key"))
            .token(token)
            .timeout(Duration.ofMinutes(2))
            .build();
    // [/sample]
    return client;
  }

  static void models(ActserveClient client) {
    // [sample]
    for (Model model : client.listModels()) {
      System.out.println(model.getName() + " has " + model.getLayerCount() + " layers");
    }
    // [/sample]
  }

  static void timeout(ActserveClient client, GenerateRequest request) {
    // [sample]
    GenerateResult soon = client.withTimeout(Duration.ofSeconds(5)).generate(request);
    // [/sample]
    System.out.println(soon.samples().get(0).text());
  }

  static void stream(ActserveClient client, GenerateRequest request) {
    // [sample]
    try (ResponseStream<GenerateResponse> events = client.streamGenerate(request)) {
      for (GenerateResponse event : events) {
        System.out.print(event.getTokens().getText());
      }
    }
    // [/sample]
  }

  static void cancel(ActserveClient client, GenerateRequest request) {
    // [sample]
    CompletableFuture<GenerateResult> future = client.generateAsync(request);
    future.cancel(true); // and with it the call
    // [/sample]
  }

  static void errors(ActserveClient client) {
    // [sample]
    try {
      client.generate(GenerateRequest.newBuilder().setPrompt(Prompts.text("")).build());
    } catch (ActserveException error) {
      switch (error.reason()) {
        case "PROMPT_EMPTY" -> System.err.println(error.field() + ": " + error.getMessage());
        default -> throw error;
      }
    }
    // [/sample]
  }

  static void stubs(ActserveClient client, ReadTokenRowsRequest request) {
    // [sample]
    var weights = WeightServiceGrpc.newBlockingStub(client.channel());
    weights.readTokenRows(request).forEachRemaining(System.out::println);
    // [/sample]
  }
}
