package dev.actserve;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ConnectivityState;
import io.grpc.ManagedChannel;
import io.grpc.MethodDescriptor;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

/** Several servers that do the same: calls go to them in turn. */
final class Replicas extends Channel implements AutoCloseable {
  /** How long calls have to end once they are cancelled. */
  private static final long CLOSE_S = 5;

  private final List<ManagedChannel> channels;
  private final AtomicInteger turn = new AtomicInteger();

  Replicas(List<ManagedChannel> channels) {
    this.channels = channels;
  }

  @Override
  public <Q, R> ClientCall<Q, R> newCall(MethodDescriptor<Q, R> method, CallOptions options) {
    return next().newCall(method, options);
  }

  /** The next one that is not known to be out of reach; the next one if all are. */
  private ManagedChannel next() {
    int first = turn.getAndIncrement();
    for (int offset = 0; offset < channels.size(); offset++) {
      ManagedChannel channel = channels.get(Math.floorMod(first + offset, channels.size()));
      if (channel.getState(true) != ConnectivityState.TRANSIENT_FAILURE) {
        return channel;
      }
    }
    return channels.get(Math.floorMod(first, channels.size()));
  }

  @Override
  public String authority() {
    return channels.get(0).authority();
  }

  @Override
  public void close() {
    channels.forEach(ManagedChannel::shutdownNow);
    try {
      for (ManagedChannel channel : channels) {
        channel.awaitTermination(CLOSE_S, TimeUnit.SECONDS);
      }
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
    }
  }
}
