import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonNull;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.protobuf.MessageOrBuilder;
import com.google.protobuf.util.JsonFormat;
import dev.actserve.ActserveClient;
import dev.actserve.ActserveClientBuilder;
import dev.actserve.ActserveException;
import dev.actserve.AlertStream;
import dev.actserve.FloatArray;
import dev.actserve.Positions;
import dev.actserve.ResponseStream;
import dev.actserve.Sites;
import dev.actserve.Tensors;
import dev.actserve.WatchedAlert;
import dev.actserve.v1.Tensor;
import io.opentelemetry.api.trace.propagation.W3CTraceContextPropagator;
import io.opentelemetry.context.Context;
import io.opentelemetry.context.propagation.TextMapGetter;
import java.io.BufferedReader;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HexFormat;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;

/**
 * Does what the conformance tests ask, one line of JSON after the other; {@code
 * tests/conformance/README.md} says what.
 */
public final class Driver {
  private static final Gson GSON =
      new GsonBuilder().serializeNulls().disableHtmlEscaping().create();

  private Driver() {}

  /** Reads questions until there are no more. */
  public static void main(String[] args) throws IOException {
    // The tests reach for 0.0.0.0, which Linux takes for this machine over IPv4 alone.
    System.setProperty("java.net.preferIPv4Stack", "true");
    BufferedReader questions =
        new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    PrintStream answers =
        new PrintStream(new FileOutputStream(FileDescriptor.out), true, StandardCharsets.UTF_8);
    for (String line = questions.readLine(); line != null; line = questions.readLine()) {
      answers.println(GSON.toJson(answer(JsonParser.parseString(line).getAsJsonObject())));
    }
  }

  private static JsonObject answer(JsonObject question) {
    JsonObject answer = new JsonObject();
    answer.add("id", question.get("id"));
    List<String> warnings = Collections.synchronizedList(new ArrayList<>());
    Callable<Void> task =
        () -> {
          perform(question, answer, warnings);
          return null;
        };
    try {
      trace(question).wrap(task).call();
    } catch (ActserveException error) {
      answer.add("error", json(error));
    } catch (Exception unforeseen) {
      unforeseen.printStackTrace();
      answer.add("error", json(ActserveException.from(unforeseen)));
    }
    answer.add("warnings", GSON.toJsonTree(warnings));
    return answer;
  }

  private static void perform(JsonObject question, JsonObject answer, List<String> warnings)
      throws Exception {
    String text = text(question, "text", "");
    switch (text(question, "operation", "")) {
      case "parse_site" -> answer.add("result", json(Sites.parse(text)));
      case "parse_positions" -> answer.add("result", json(Positions.parse(text)));
      case "decode_tensor" -> {
        Tensor tensor = message(question.get("tensor"), Tensor.newBuilder()).build();
        answer.add("result", json(Tensors.decode(tensor)));
      }
      case "encode_tensor" -> {
        int[] shape = GSON.fromJson(question.get("shape"), int[].class);
        answer.add("result", json(Tensors.encode(floats(text(question, "data", "")), shape)));
      }
      case "build_add" -> answer.add("result", json(Building.add(question)));
      case "build_features" -> answer.add("result", json(Building.features(question)));
      case "build_feature_readout" -> answer.add("result", json(Building.featureReadout(question)));
      case "streams" -> answer.add("result", Load.streams(question, warnings));
      case "measure" -> answer.add("result", Load.measure(question, warnings));
      default -> {
        try (ActserveClient client = client(question, warnings)) {
          call(client, question, answer);
        }
      }
    }
  }

  private static void call(ActserveClient client, JsonObject question, JsonObject answer)
      throws Exception {
    String method = text(question, "method", "");
    JsonElement request = question.get("request");
    switch (text(question, "operation", "")) {
      case "unary" -> answer.add("result", json(Methods.unary(client, method, request)));
      case "list" -> answer.add("result", list(client, method, question));
      case "stream" -> {
        JsonArray events = new JsonArray();
        JsonObject result = new JsonObject();
        result.add("events", events);
        answer.add("result", result);
        stream(client, method, question, events);
      }
      case "collect" -> {
        CompletableFuture<JsonObject> result = Methods.collect(client, method, request);
        answer.add("result", wait(result, question));
      }
      case "watch" -> {
        JsonArray alerts = new JsonArray();
        JsonObject result = new JsonObject();
        result.add("alerts", alerts);
        answer.add("result", result);
        watch(client, question, alerts);
      }
      case "upload" -> answer.add("result", Dictionaries.upload(client, question));
      case "graph" -> answer.add("result", Methods.graph(client, request));
      case "logit_effects" -> answer.add("result", Dictionaries.effects(client, question));
      case "wait" -> {
        JsonObject result = new JsonObject();
        result.addProperty("name", client.waitForMonitor(text(question, "name", "")).getName());
        answer.add("result", result);
      }
      default -> throw new IllegalArgumentException("there is no such operation: " + question);
    }
  }

  private static JsonObject list(ActserveClient client, String method, JsonObject question)
      throws Exception {
    long take = question.has("take") ? question.get("take").getAsLong() : Long.MAX_VALUE;
    JsonArray names = new JsonArray();
    if (take > 0) {
      for (String name : Methods.list(client, method, question.get("request"))) {
        names.add(name);
        if (names.size() >= take) {
          break;
        }
      }
    }
    JsonObject result = new JsonObject();
    result.add("names", names);
    return result;
  }

  private static void stream(
      ActserveClient client, String method, JsonObject question, JsonArray events)
      throws Exception {
    try (ResponseStream<?> stream = Methods.stream(client, method, question.get("request"))) {
      if (question.has("cancel_after_s")) {
        long millis = millis(question.get("cancel_after_s"));
        CompletableFuture.delayedExecutor(millis, TimeUnit.MILLISECONDS).execute(stream::cancel);
      }
      for (Object response : stream) {
        events.add(Methods.event(response));
        if (question.has("cancel_after")
            && events.size() == question.get("cancel_after").getAsInt()) {
          stream.cancel();
        }
      }
    }
  }

  /** Tells alerts until there are enough of them. */
  private static void watch(ActserveClient client, JsonObject question, JsonArray alerts)
      throws Exception {
    try (AlertStream stream = Methods.watch(client, question.get("request"))) {
      for (WatchedAlert watched : stream) {
        JsonObject alert = new JsonObject();
        alert.addProperty("name", watched.alert().getName());
        alert.addProperty("lost_before", watched.lostBefore());
        alerts.add(alert);
        if (question.has("take") && alerts.size() >= question.get("take").getAsInt()) {
          break;
        }
      }
    }
  }

  private static JsonObject wait(CompletableFuture<JsonObject> result, JsonObject question) {
    if (question.has("cancel_after_s")) {
      long millis = millis(question.get("cancel_after_s"));
      CompletableFuture.delayedExecutor(millis, TimeUnit.MILLISECONDS)
          .execute(() -> result.cancel(true));
    }
    try {
      return result.join();
    } catch (RuntimeException failed) {
      throw ActserveException.from(failed);
    }
  }

  /** A client as a question has it. */
  static ActserveClient client(JsonObject question, List<String> warnings) {
    JsonObject asked = question.getAsJsonObject("client");
    List<String> targets = new ArrayList<>();
    asked.getAsJsonArray("targets").forEach(target -> targets.add(target.getAsString()));
    String[] others = targets.subList(1, targets.size()).toArray(new String[0]);
    ActserveClientBuilder builder = ActserveClient.builder(targets.get(0), others);
    builder.onWarning(warnings::add);
    if (asked.has("token")) {
      builder.token(text(asked, "token", ""));
    }
    if (asked.has("allow_plaintext_token") && asked.get("allow_plaintext_token").getAsBoolean()) {
      builder.allowPlaintextToken();
    }
    if (asked.has("tls")) {
      JsonObject tls = asked.getAsJsonObject("tls");
      builder.tls();
      if (tls.has("ca_file")) {
        builder.tls(Path.of(text(tls, "ca_file", "")));
      }
      if (tls.has("cert_file")) {
        builder.clientCertificate(
            Path.of(text(tls, "cert_file", "")), Path.of(text(tls, "key_file", "")));
      }
    }
    if (asked.has("timeout_s")) {
      builder.timeout(Duration.ofMillis(millis(asked.get("timeout_s"))));
    }
    if (asked.has("model")) {
      builder.model(text(asked, "model", ""));
    }
    if (asked.has("metadata")) {
      asked
          .getAsJsonObject("metadata")
          .entrySet()
          .forEach(header -> builder.header(header.getKey(), header.getValue().getAsString()));
    }
    return builder.build();
  }

  private static Context trace(JsonObject question) {
    JsonObject asked =
        question.has("client") ? question.getAsJsonObject("client") : new JsonObject();
    TextMapGetter<JsonObject> getter =
        new TextMapGetter<>() {
          @Override
          public Iterable<String> keys(JsonObject carrier) {
            return carrier.keySet();
          }

          @Override
          public String get(JsonObject carrier, String key) {
            return carrier == null ? null : text(carrier, key, null);
          }
        };
    return W3CTraceContextPropagator.getInstance().extract(Context.root(), asked, getter);
  }

  private static String text(JsonObject from, String key, String otherwise) {
    return from.has(key) ? from.get(key).getAsString() : otherwise;
  }

  private static long millis(JsonElement seconds) {
    return Math.round(1000 * seconds.getAsDouble());
  }

  /** A message from its JSON form. */
  static <B extends Message.Builder> B message(JsonElement json, B builder)
      throws InvalidProtocolBufferException {
    JsonFormat.parser().merge(GSON.toJson(json), builder);
    return builder;
  }

  private static JsonElement json(MessageOrBuilder message) throws InvalidProtocolBufferException {
    return JsonParser.parseString(JsonFormat.printer().print(message));
  }

  /** An array, as the tests want it. */
  static JsonObject json(FloatArray array) {
    float[] data = array.data();
    ByteBuffer bytes =
        ByteBuffer.allocate(Float.BYTES * data.length).order(ByteOrder.LITTLE_ENDIAN);
    for (float number : data) {
      bytes.putInt(Float.floatToRawIntBits(number));
    }
    JsonObject json = new JsonObject();
    json.add("shape", GSON.toJsonTree(array.shape()));
    json.addProperty("data", HexFormat.of().formatHex(bytes.array()));
    return json;
  }

  /** The float32 values of hexadecimal digits. */
  static float[] floats(String hexadecimal) {
    ByteBuffer bytes = ByteBuffer.wrap(HexFormat.of().parseHex(hexadecimal));
    float[] floats = new float[bytes.remaining() / Float.BYTES];
    bytes.order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(floats);
    return floats;
  }

  /** Float32 numbers, as the tests want them. */
  static JsonObject json(int[] shape, float... values) {
    ByteBuffer bytes =
        ByteBuffer.allocate(Float.BYTES * values.length).order(ByteOrder.LITTLE_ENDIAN);
    bytes.asFloatBuffer().put(values);
    JsonObject json = new JsonObject();
    json.add("shape", GSON.toJsonTree(shape));
    json.addProperty("data", HexFormat.of().formatHex(bytes.array()));
    return json;
  }

  /** An error, as the tests want it. */
  static JsonObject json(ActserveException error) {
    JsonObject json = new JsonObject();
    json.addProperty("code", error.code().name());
    json.addProperty("reason", error.reason());
    json.addProperty("message", error.getMessage());
    json.addProperty("field", error.field());
    json.add("metadata", GSON.toJsonTree(error.metadata()));
    json.add("retry_after_s", JsonNull.INSTANCE);
    error
        .retryAfter()
        .ifPresent(
            delay -> json.addProperty("retry_after_s", delay.getSeconds() + delay.getNano() / 1e9));
    json.addProperty("request_id", error.requestId());
    return json;
  }
}
