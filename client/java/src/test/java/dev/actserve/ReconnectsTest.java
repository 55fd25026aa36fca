package dev.actserve;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.grpc.Status;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;

/** How a watch looks for a server that is gone. */
final class ReconnectsTest {
  private static final ActserveException GONE =
      ActserveException.of(Status.UNAVAILABLE.withDescription("gone"), null, null);

  @Test
  void pausesDoubleUpToAQuarterOfAMinute() {
    List<Duration> longest = Stream.of(0, 1, 2, 6, 1000).map(Reconnects::longest).toList();
    assertEquals(Stream.of(250, 500, 1000, 15000, 15000).map(Duration::ofMillis).toList(), longest);
  }

  @Test
  void aServerThatWasNeverThereIsNotLookedFor() {
    assertTrue(new Reconnects(said -> {}).pause(GONE).isEmpty());
  }

  @Test
  void itSaysThatTheServerIsGoneAndThatItIsBack() {
    List<String> said = new ArrayList<>();
    Reconnects watch = new Reconnects(said::add);
    watch.opened();
    for (int attempt = 0; attempt < 100; attempt++) {
      assertTrue(watch.pause(GONE).isPresent());
    }
    assertEquals(1, said.size());
    watch.opened();
    assertEquals(2, said.size());
  }
}
