import dev.actserve.ActserveClient;
import dev.actserve.ActserveException;
import dev.actserve.Captured;
import dev.actserve.Features;
import dev.actserve.GenerateResult;
import dev.actserve.GraphResult;
import dev.actserve.Interventions;
import dev.actserve.LogitEffect;
import dev.actserve.Probes;
import dev.actserve.Prompts;
import dev.actserve.Readouts;
import dev.actserve.ResponseStream;
import dev.actserve.Rows;
import dev.actserve.Sites;
import dev.actserve.SweepResult;
import dev.actserve.Vectors;
import dev.actserve.v1.AttributionNode;
import dev.actserve.v1.AttributionSettings;
import dev.actserve.v1.ContrastingPrompts;
import dev.actserve.v1.CreateAttributionGraphRequest;
import dev.actserve.v1.Dictionary;
import dev.actserve.v1.FeatureChange;
import dev.actserve.v1.FetchActivationsRequest;
import dev.actserve.v1.FetchItem;
import dev.actserve.v1.GenerateRequest;
import dev.actserve.v1.GenerateResponse;
import dev.actserve.v1.HeadMetrics;
import dev.actserve.v1.Intervention;
import dev.actserve.v1.MakeSteeringVectorRequest;
import dev.actserve.v1.MeasureHeadsRequest;
import dev.actserve.v1.Model;
import dev.actserve.v1.Probe;
import dev.actserve.v1.ReadTokenRowsRequest;
import dev.actserve.v1.RunSweepRequest;
import dev.actserve.v1.SamplingParams;
import dev.actserve.v1.SweepAnswer;
import dev.actserve.v1.SweepCell;
import dev.actserve.v1.SweepPrompt;
import dev.actserve.v1.SweepVariant;
import dev.actserve.v1.VectorSource;
import dev.actserve.v1.WeightServiceGrpc;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
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

  static Intervention vectors(ActserveClient client) {
    // [sample]
    MakeSteeringVectorRequest request =
        MakeSteeringVectorRequest.newBuilder()
            .setSteeringVectorId("joy")
            .addSites(Sites.parse("resid_post.15"))
            .setPrompts(
                ContrastingPrompts.newBuilder()
                    .addPositive(Prompts.text("I loved it, wonderful!"))
                    .addNegative(Prompts.text("I hated it, terrible!")))
            .build();
    String name = client.makeSteeringVector(request).getSteeringVector().getName();
    VectorSource joy = Vectors.stored(name); // models/.../steeringVectors/joy
    Intervention steered = Interventions.add(joy, 2, "resid_post.15");
    // [/sample]
    return steered;
  }

  static Intervention condition(Intervention steered, VectorSource joy) {
    // [sample]
    Probe probe = Probes.linear("resid_post.8", joy);
    Intervention where = steered.toBuilder().setWhen(Probes.above(probe, 0.5f)).build();
    // [/sample]
    return where;
  }

  static void features(ActserveClient client, String name) {
    // [sample]
    for (Dictionary dictionary : client.listDictionaries()) {
      float explained = dictionary.getCheck().getExplained();
      System.out.println(dictionary.getName() + ", " + dictionary.getFeatures() + ", " + explained);
    }
    FetchActivationsRequest request =
        FetchActivationsRequest.newBuilder()
            .addItems(FetchItem.newBuilder().setPrompt(Prompts.text("Rain fell on the lake")))
            .addReadouts(Readouts.topFeatures("top", "last", name, 5, "resid_post.20"))
            .build();
    Captured read = client.fetchActivations(request).items().get(0).captured();
    Rows top = read.rows("top", "resid_post.20");
    System.out.println(top.indices()[0] + ": " + top.values().data()[0]); // the largest feature
    // [/sample]
  }

  static Intervention changes(ActserveClient client, String name) {
    // [sample]
    List<FeatureChange> changes = List.of(Features.set(2178, 60), Features.scale(7, 0));
    Intervention steer = Interventions.features(name, changes, "resid_post.20");
    for (LogitEffect effect : client.logitEffects(name, new int[] {2178}, 5)) {
      for (LogitEffect.Token token : effect.top()) {
        System.out.println(token.text() + " " + token.effect());
      }
    }
    // [/sample]
    return steer;
  }

  static void heads(ActserveClient client) {
    // [sample]
    MeasureHeadsRequest request =
        MeasureHeadsRequest.newBuilder()
            .addItems(FetchItem.newBuilder().setPrompt(Prompts.text("one two three one two three")))
            .build();
    for (List<HeadMetrics> layer : client.measureHeads(request).heads()) {
      for (HeadMetrics head : layer) {
        String name = head.getLayer() + "." + head.getHead() + ": ";
        System.out.println(name + head.getInduction() + " " + head.getPreviousToken());
      }
    }
    // [/sample]
  }

  static void graph(ActserveClient client) {
    // [sample]
    CreateAttributionGraphRequest request =
        CreateAttributionGraphRequest.newBuilder()
            .setPrompt(Prompts.text("The capital of France is"))
            .setSettings(AttributionSettings.newBuilder().setMaxFeatureNodes(300))
            .build();
    String name = client.createAttributionGraph(request).getAttributionGraph().getName();
    GraphResult graph = client.waitForAttributionGraph(name);
    for (int edge = 0; edge < graph.weights().length; edge++) {
      AttributionNode source = graph.nodes().get(graph.sources()[edge]);
      AttributionNode target = graph.nodes().get(graph.targets()[edge]);
      System.out.println(source.getKindCase() + " " + target.getKindCase() + graph.weights()[edge]);
    }
    // [/sample]
  }

  static void sweep(ActserveClient client, VectorSource joy) {
    // [sample]
    RunSweepRequest request =
        RunSweepRequest.newBuilder()
            .addPrompts(SweepPrompt.newBuilder().setPrompt(Prompts.text("I think the movie was")))
            .addVariants(
                SweepVariant.newBuilder()
                    .addInterventions(Interventions.add(joy)) // the lists say how much, and where
                    .addAllCoefficients(List.of(0f, 2f, 4f))
                    .addSites(Sites.parse("resid_post.10"))
                    .addSites(Sites.parse("resid_post.15")))
            .setSampling(SamplingParams.newBuilder().setMaxTokens(20))
            .addAnswers(SweepAnswer.newBuilder().setName("great").setText(" great"))
            .build();
    for (SweepResult.Cell each : client.runSweep(request).cells()) {
      SweepCell cell = each.cell();
      String at = cell.getCoefficientIndex() + ", " + cell.getSiteIndex() + ": ";
      each.error()
          .ifPresentOrElse(
              error -> System.err.println(at + error.getMessage()),
              () -> System.out.println(at + cell.getText() + cell.getAnswerLogprobsList()));
    }
    // [/sample]
  }
}
