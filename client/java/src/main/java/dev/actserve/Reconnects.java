package dev.actserve;

import io.grpc.Status;
import java.time.Duration;
import java.util.Optional;
import java.util.concurrent.ThreadLocalRandom;
import java.util.function.Consumer;

/**
 * The attempts at a call that is to last. Once there was a connection, a server that is gone is
 * looked for as long as it takes.
 */
final class Reconnects {
  /**
   * Pauses double from the first up to the slowest: late enough to be no load for a server that is
   * gone, soon enough for an alert.
   */
  private static final Duration FIRST = Duration.ofMillis(250);

  private static final Duration SLOWEST = Duration.ofSeconds(15);

  /** A connection that has held for as long as this was a good one. */
  private static final Duration HELD = Duration.ofSeconds(10);

  private final Consumer<String> warn;

  /** Whether there was a connection, and when the newest began. */
  private boolean connected;

  private long connectedNanos;

  /** Whether there is none any more, and since when. */
  private boolean gone;

  private long goneNanos;

  /** Attempts since a connection was a good one. */
  private int failures;

  /** Whether it was said that the server is gone. */
  private boolean told;

  Reconnects(Consumer<String> warn) {
    this.warn = warn;
  }

  /** A connection has begun. */
  void opened() {
    connected = true;
    connectedNanos = System.nanoTime();
    if (told) {
      warn.accept(
          "connected again after %.1f seconds; the watch goes on where it was"
              .formatted((connectedNanos - goneNanos) / 1e9));
    }
    gone = false;
    told = false;
  }

  /** Something has come by the connection. */
  void good() {
    failures = 0;
  }

  /** How long to wait before the server is looked for again; empty if it is not. */
  Optional<Duration> pause(ActserveException error) {
    // Before its first connection the call was made again already.
    if (error.code() != Status.Code.UNAVAILABLE || !connected) {
      return Optional.empty();
    }
    boolean lookedFor = gone;
    if (!lookedFor) {
      gone = true;
      goneNanos = System.nanoTime();
      if (goneNanos - connectedNanos > HELD.toNanos()) {
        failures = 0;
      }
    }
    Duration wait = error.retryAfter().orElse(Duration.ZERO);
    if (wait.compareTo(Retries.LONGEST_DELAY) > 0) {
      wait = Retries.LONGEST_DELAY;
    }
    long random = ThreadLocalRandom.current().nextLong(longest(failures).toNanos() + 1);
    failures++;
    if (lookedFor && !told) {
      warn.accept("the watch has no server, and looks for it: " + error.getMessage());
      told = true;
    }
    return Optional.of(Duration.ofNanos(Math.max(0, wait.toNanos()) + random));
  }

  /** How long the pause after so many failures is at most. */
  static Duration longest(int failures) {
    Duration doubled = FIRST.multipliedBy(1L << Math.min(failures, 16));
    return doubled.compareTo(SLOWEST) < 0 ? doubled : SLOWEST;
  }
}
