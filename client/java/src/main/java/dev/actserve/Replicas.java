package dev.actserve;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ForwardingClientCall.SimpleForwardingClientCall;
import io.grpc.ForwardingClientCallListener.SimpleForwardingClientCallListener;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

/** Several servers that do the same: calls go to them in turn. */
final class Replicas extends Channel implements AutoCloseable {
  /** How calls end that were running when the client was closed, or are made after that. */
  static final Status CLOSED = Status.CANCELLED.withDescription("the client was closed");

  /** How long calls have to end once they are cancelled. */
  private static final long CLOSE_S = 5;

  private final List<Replica> replicas;
  private final AtomicInteger turn = new AtomicInteger();
  private volatile boolean closed;

  Replicas(List<ManagedChannel> channels) {
    replicas = channels.stream().map(Replica::new).toList();
  }

  @Override
  public <Q, R> ClientCall<Q, R> newCall(MethodDescriptor<Q, R> method, CallOptions options) {
    return new SimpleForwardingClientCall<>(choose(method, options)) {
      @Override
      public void start(Listener<R> listener, Metadata headers) {
        super.start(new Ends<>(listener), headers);
      }
    };
  }

  private <Q, R> ClientCall<Q, R> choose(MethodDescriptor<Q, R> method, CallOptions options) {
    int first = Math.floorMod(turn.getAndIncrement(), replicas.size());
    Replica next = replicas.get(first);
    if (replicas.size() == 1 || next.isReady()) {
      return next.channel().newCall(method, options);
    }
    List<Replica> inTurn = new ArrayList<>(replicas);
    Collections.rotate(inTurn, -first);
    return new ReplicaCall<>(inTurn, method, options);
  }

  /**
   * Has those that wait to connect again do so at once: after a long time without a server they
   * would wait for minutes.
   */
  void connectNow() {
    replicas.forEach(replica -> replica.channel().resetConnectBackoff());
  }

  @Override
  public String authority() {
    return replicas.get(0).channel().authority();
  }

  @Override
  public void close() {
    closed = true;
    replicas.forEach(replica -> replica.channel().shutdownNow());
    try {
      for (Replica replica : replicas) {
        replica.channel().awaitTermination(CLOSE_S, TimeUnit.SECONDS);
      }
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
    }
  }

  /** Tells of a connection's end what it means for the call. */
  private final class Ends<R> extends SimpleForwardingClientCallListener<R> {
    private boolean answered;

    Ends(ClientCall.Listener<R> listener) {
      super(listener);
    }

    @Override
    public void onHeaders(Metadata headers) {
      answered = true;
      super.onHeaders(headers);
    }

    @Override
    public void onClose(Status status, Metadata trailers) {
      if (closed && status.getCode() == Status.Code.UNAVAILABLE) {
        super.onClose(CLOSED.withCause(status.getCause()), trailers);
      } else if (!answered && status.getCode() == Status.Code.INTERNAL && isProtocol(status)) {
        // What listens there is no server of gRPC; another replica may be.
        Status unavailable = Status.UNAVAILABLE.withDescription(status.getDescription());
        super.onClose(unavailable.withCause(status.getCause()), trailers);
      } else {
        super.onClose(status, trailers);
      }
    }

    /** Whether the connection's own protocol was broken, for which gRPC has no type of its own. */
    private static boolean isProtocol(Status status) {
      Throwable cause = status.getCause();
      return cause != null && cause.getClass().getName().contains("Http2Exception");
    }
  }
}
