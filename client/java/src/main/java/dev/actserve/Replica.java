package dev.actserve;

import io.grpc.ConnectivityState;
import io.grpc.ManagedChannel;
import java.util.concurrent.TimeUnit;

/** One of several servers that do the same, and since when it is waited for. */
final class Replica {
  /** How long a replica may take to connect before calls pass it over. */
  private static final long PATIENCE_NANOS = TimeUnit.SECONDS.toNanos(1);

  private final ManagedChannel channel;

  // Guarded by this.
  private boolean waited;
  private long since;

  Replica(ManagedChannel channel) {
    this.channel = channel;
  }

  ManagedChannel channel() {
    return channel;
  }

  boolean isReady() {
    return state() == ConnectivityState.READY;
  }

  /** Its state; one that is not connected begins to connect. */
  synchronized ConnectivityState state() {
    ConnectivityState state = channel.getState(true);
    if (state == ConnectivityState.READY) {
      waited = false;
    } else if (!waited) {
      waited = true;
      since = System.nanoTime();
    }
    return state;
  }

  /** How much longer calls wait for it. */
  synchronized long patienceNanos() {
    return waited ? PATIENCE_NANOS - (System.nanoTime() - since) : PATIENCE_NANOS;
  }
}
