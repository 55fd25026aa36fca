import dev.actserve.ActserveClient;
import dev.actserve.ActserveException;
import dev.actserve.Prompts;
import dev.actserve.ResponseStream;
import dev.actserve.v1.GenerateRequest;
import dev.actserve.v1.GenerateResponse;
import dev.actserve.v1.ReadTokenRowsRequest;
import dev.actserve.v1.WeightServiceGrpc;
import java.nio.file.Path;
import java.time.Duration;
import java.util.concurrent.CompletableFuture;

/** The other snippets of the README, which are compiled and need servers of their own to run. */
final class Connect {
  private Connect() {}

  static ActserveClient connect(String token) {
    // [connect]
    ActserveClient client =
        ActserveClient.builder("one.example.com:50051", "two.example.com:50051")
            .tls(Path.of("authority.pem"))
            .clientCertificate(Path.of("client.pem"), Path.of("client.key"))
            .token(token)
            .timeout(Duration.ofMinutes(2))
            .build();
    // [/connect]
    return client;
  }

  static void stream(ActserveClient client, GenerateRequest request) {
    // [stream]
    try (ResponseStream<GenerateResponse> events = client.streamGenerate(request)) {
      for (GenerateResponse event : events) {
        System.out.print(event.getTokens().getText());
      }
    }
    // [/stream]
  }

  static void cancel(ActserveClient client, GenerateRequest request) {
    // [cancel]
    CompletableFuture<?> future = client.generateAsync(request);
    future.cancel(true);
    // [/cancel]
  }

  static void errors(ActserveClient client) {
    // [errors]
    try {
      client.generate(GenerateRequest.newBuilder().setPrompt(Prompts.text("")).build());
    } catch (ActserveException error) {
      switch (error.reason()) {
        case "PROMPT_EMPTY" -> System.err.println(error.field() + ": " + error.getMessage());
        default -> throw error;
      }
    }
    // [/errors]
  }

  static void stubs(ActserveClient client, ReadTokenRowsRequest request) {
    // [stubs]
    var weights = WeightServiceGrpc.newBlockingStub(client.channel());
    weights.readTokenRows(request).forEachRemaining(System.out::println);
    // [/stubs]
  }
}
