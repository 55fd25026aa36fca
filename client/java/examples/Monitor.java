import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import dev.actserve.ActserveClient;
import dev.actserve.AlertStream;
import dev.actserve.FetchResult;
import dev.actserve.GenerateResult;
import dev.actserve.Probes;
import dev.actserve.Prompts;
import dev.actserve.Readouts;
import dev.actserve.Vectors;
import dev.actserve.v1.Alert;
import dev.actserve.v1.AlertFilter;
import dev.actserve.v1.AlertLevel;
import dev.actserve.v1.CreateMonitorRequest;
import dev.actserve.v1.DeleteAlertsRequest;
import dev.actserve.v1.DeleteMonitorRequest;
import dev.actserve.v1.FetchActivationsRequest;
import dev.actserve.v1.FetchItem;
import dev.actserve.v1.GenerateRequest;
import dev.actserve.v1.MonitorLevel;
import dev.actserve.v1.MonitorScore;
import dev.actserve.v1.MonitorWatch;
import dev.actserve.v1.SamplingParams;
import dev.actserve.v1.ScoreDetail;
import dev.actserve.v1.WatchAlertsRequest;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.Locale;

/** Watches what a model writes by a probe, and tells where its score is high. */
public final class Monitor {
  private static final Gson JSON = new GsonBuilder().disableHtmlEscaping().create();
  private static final String SITE = "resid_post.15";

  private Monitor() {}

  /** Takes the address of a server. */
  public static void main(String[] args) {
    System.setOut(new PrintStream(System.out, true, StandardCharsets.UTF_8));
    String address = args.length > 0 ? args[0] : "localhost:50051";
    try (ActserveClient client = ActserveClient.connect(address)) {
      FetchResult texts =
          client.fetchActivations(
              FetchActivationsRequest.newBuilder()
                  .addItems(
                      FetchItem.newBuilder().setPrompt(Prompts.text("I loved it, wonderful!")))
                  .addItems(FetchItem.newBuilder().setPrompt(Prompts.text("I hated it, terrible!")))
                  .addReadouts(Readouts.rows("acts", "last", SITE))
                  .build());
      float[] loved = texts.items().get(0).captured().rows("acts", SITE).values().row(0);
      float[] hated = texts.items().get(1).captured().rows("acts", SITE).values().row(0);
      float[] mood = new float[loved.length];
      double halfway = 0;
      for (int index = 0; index < mood.length; index++) {
        mood[index] = loved[index] - hated[index];
        halfway += (double) mood[index] * (loved[index] + hated[index]) / 2;
      }

      // [sample]
      CreateMonitorRequest request =
          CreateMonitorRequest.newBuilder()
              .setMonitorId("mood")
              .setMonitor(
                  dev.actserve.v1.Monitor.newBuilder()
                      .addProbes(Probes.linear(SITE, Vectors.sent(mood)))
                      .setLower(
                          MonitorLevel.newBuilder().setThreshold((float) halfway).setFlag(true))
                      .setWatch(MonitorWatch.newBuilder().setNamedOnly(true)))
              .build();
      String name =
          client.createMonitor(request).getMonitor().getName(); // models/.../monitors/mood
      // [/sample]
      AlertFilter filter = AlertFilter.newBuilder().addMonitors(name).build();
      watch(client, name, filter);
      client.deleteAlerts(DeleteAlertsRequest.newBuilder().setFilter(filter).build());
      client.deleteMonitor(DeleteMonitorRequest.newBuilder().setName(name).build());
    }
  }

  private static void watch(ActserveClient client, String name, AlertFilter filter) {
    // [sample]
    GenerateResult.Sample sample =
        client
            .generate(
                GenerateRequest.newBuilder()
                    .setPrompt(Prompts.text("I loved it, wonderful!"))
                    .setSampling(SamplingParams.newBuilder().setTemperature(0).setMaxTokens(20))
                    .addMonitors(name)
                    .setScoreDetail(ScoreDetail.SCORE_DETAIL_SAMPLE)
                    .build())
            .samples()
            .get(0);
    System.out.println("generated: " + JSON.toJson(sample.text()));
    for (MonitorScore score : sample.finished().getMonitorScoresList()) {
      System.out.printf(
          Locale.ROOT,
          "highest: %.2f at token %d%n",
          score.getHighestScore(),
          score.getHighestPosition());
    }
    for (Alert alert : sample.alerts()) { // of levels with `flag`
      System.out.println("told: " + told(alert));
    }
    WatchAlertsRequest all =
        WatchAlertsRequest.newBuilder().setFilter(filter).setFromOldest(true).build();
    try (AlertStream watched = client.watchAlerts(all)) { // goes on until it is closed
      System.out.println("watched: " + told(watched.next().alert()));
    }
    // [/sample]
  }

  private static String told(Alert alert) {
    String level = alert.getLevel() == AlertLevel.ALERT_LEVEL_LOWER ? "lower" : "upper";
    return "%s, %s at token %d"
        .formatted(
            level, String.format(Locale.ROOT, "%.2f", alert.getScore()), alert.getPosition());
  }
}
