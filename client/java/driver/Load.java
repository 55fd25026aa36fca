import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import dev.actserve.ActserveClient;
import dev.actserve.Captured;
import dev.actserve.FetchResult;
import dev.actserve.GenerateResult;
import dev.actserve.ResponseStream;
import dev.actserve.v1.FetchActivationsRequest;
import dev.actserve.v1.GenerateRequest;
import dev.actserve.v1.ReconstructActivationsRequest;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/** Many calls at once. */
final class Load {
  /** How long threads that have nothing to do may take to end. */
  private static final long SETTLE_NANOS = 5_000_000_000L;

  private Load() {}

  static JsonObject streams(JsonObject question, List<String> warnings) throws Exception {
    // What the JVM and gRPC start once for the whole process is no leak.
    try (ActserveClient client = ActserveClient.connect("127.0.0.1:1")) {
      client.streamGenerate(GenerateRequest.getDefaultInstance()).cancel();
    }
    Set<Thread> before = threads();
    int count = question.get("count").getAsInt();
    int cancelEvery = question.get("cancel_every").getAsInt();
    String method = question.get("method").getAsString();
    int cancelled = 0;
    try (ActserveClient client = Driver.client(question, warnings)) {
      List<ResponseStream<?>> streams = new ArrayList<>();
      for (int index = 0; index < count; index++) {
        streams.add(Methods.stream(client, method, question.get("request")));
      }
      List<Callable<Boolean>> readers = new ArrayList<>();
      for (int index = 0; index < count; index++) {
        ResponseStream<?> stream = streams.get(index);
        boolean cancels = (index + 1) % cancelEvery == 0;
        readers.add(() -> read(stream, cancels));
      }
      for (boolean wasCancelled : all(readers)) {
        cancelled += wasCancelled ? 1 : 0;
      }
    }
    JsonObject json = new JsonObject();
    json.addProperty("finished", count - cancelled);
    json.addProperty("cancelled", cancelled);
    json.addProperty("leaked", leaked(before));
    return json;
  }

  /** Whether a stream was cancelled. */
  private static boolean read(ResponseStream<?> stream, boolean cancels) {
    try (stream) {
      while (stream.hasNext()) {
        stream.next();
        if (cancels) {
          return true;
        }
      }
    }
    return false;
  }

  static JsonObject measure(JsonObject question, List<String> warnings) throws Exception {
    String method = question.get("method").getAsString();
    JsonElement request = question.get("request");
    long begun = System.nanoTime();
    long end = begun + Math.round(1e9 * question.get("seconds").getAsDouble());
    long[] total = new long[2];
    try (ActserveClient client = Driver.client(question, warnings)) {
      Callable<long[]> task =
          () -> {
            long[] own = new long[2];
            Callable<Long> call = call(client, method, request);
            while (System.nanoTime() < end) {
              own[1] += call.call();
              own[0]++;
            }
            return own;
          };
      List<Callable<long[]>> tasks = new ArrayList<>();
      for (int index = 0; index < question.get("concurrency").getAsInt(); index++) {
        tasks.add(task);
      }
      for (long[] own : all(tasks)) {
        total[0] += own[0];
        total[1] += own[1];
      }
    }
    JsonObject json = new JsonObject();
    json.addProperty("calls", total[0]);
    json.addProperty("bytes", total[1]);
    json.addProperty("seconds", (System.nanoTime() - begun) / 1e9);
    return json;
  }

  /** A call that tells the bytes of the rows it gets. */
  private static Callable<Long> call(ActserveClient client, String method, JsonElement json)
      throws Exception {
    switch (method) {
      case "FetchActivations" -> {
        var request = Driver.message(json, FetchActivationsRequest.newBuilder()).build();
        return () ->
            client.fetchActivations(request).items().stream()
                .map(FetchResult.Item::captured)
                .mapToLong(Load::bytes)
                .sum();
      }
      case "Generate" -> {
        var request = Driver.message(json, GenerateRequest.newBuilder()).build();
        return () ->
            client.generate(request).samples().stream()
                .map(GenerateResult.Sample::captured)
                .mapToLong(Load::bytes)
                .sum();
      }
      case "ReconstructActivations" -> {
        var request = Driver.message(json, ReconstructActivationsRequest.newBuilder()).build();
        return () ->
            (long) Float.BYTES * client.reconstructActivations(request).rows().data().length;
      }
      default -> {
        return () -> {
          Methods.collect(client, method, json).get();
          return 0L;
        };
      }
    }
  }

  private static long bytes(Captured captured) {
    return captured.rows().values().stream()
        .flatMap(bySite -> bySite.values().stream())
        .mapToLong(rows -> (long) Float.BYTES * rows.values().data().length)
        .sum();
  }

  private static <T> List<T> all(List<Callable<T>> tasks) throws Exception {
    ExecutorService threads = Executors.newFixedThreadPool(Math.max(1, tasks.size()));
    try {
      List<T> results = new ArrayList<>();
      for (Future<T> result : threads.invokeAll(tasks)) {
        results.add(result.get());
      }
      return results;
    } finally {
      threads.shutdown();
    }
  }

  private static Set<Thread> threads() {
    return new HashSet<>(Thread.getAllStackTraces().keySet());
  }

  private static int leaked(Set<Thread> before) throws InterruptedException {
    long until = System.nanoTime() + SETTLE_NANOS;
    while (true) {
      Set<Thread> left = threads();
      left.removeAll(before);
      if (left.isEmpty() || System.nanoTime() > until) {
        left.forEach(thread -> System.err.println("still running: " + thread));
        return left.size();
      }
      Thread.sleep(50);
    }
  }
}
