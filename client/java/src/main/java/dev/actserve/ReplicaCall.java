package dev.actserve;

import io.grpc.CallOptions;
import io.grpc.ClientCall;
import io.grpc.ConnectivityState;
import io.grpc.Context;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;

/**
 * A call that waits for the first replica that is connected, and passes over those that cannot be
 * reached or do not answer. What is done with it until then is done later.
 */
final class ReplicaCall<Q, R> extends ClientCall<Q, R> {
  private final List<Replica> inTurn;
  private final MethodDescriptor<Q, R> method;
  private final CallOptions options;
  private final Context context = Context.current();

  // Guarded by this.
  private final List<Consumer<ClientCall<Q, R>>> later = new ArrayList<>();
  private ClientCall<Q, R> chosen;
  private int next;

  ReplicaCall(List<Replica> inTurn, MethodDescriptor<Q, R> method, CallOptions options) {
    this.inTurn = inTurn;
    this.method = method;
    this.options = options;
  }

  @Override
  public void start(Listener<R> listener, Metadata headers) {
    perform(call -> call.start(listener, headers));
    tryReplica(0);
  }

  @Override
  public void request(int count) {
    perform(call -> call.request(count));
  }

  @Override
  public void sendMessage(Q message) {
    perform(call -> call.sendMessage(message));
  }

  @Override
  public void halfClose() {
    perform(ClientCall::halfClose);
  }

  @Override
  public synchronized void cancel(String why, Throwable cause) {
    // Nothing is to wait for; what was never begun ends as cancelled all the same.
    choose(inTurn.get(0));
    chosen.cancel(why, cause);
  }

  private synchronized void perform(Consumer<ClientCall<Q, R>> step) {
    if (chosen == null) {
      later.add(step);
    } else {
      step.accept(chosen);
    }
  }

  /** Takes a replica if it is connected, waits for it if it may soon be, or else goes on. */
  private synchronized void tryReplica(int index) {
    if (chosen != null || index < next) {
      return;
    }
    next = index;
    if (index == inTurn.size()) {
      choose(lastResort());
      return;
    }
    Replica replica = inTurn.get(index);
    ConnectivityState state = replica.state();
    long patience = Math.min(replica.patienceNanos(), leftNanos());
    switch (state) {
      case READY, SHUTDOWN -> choose(replica);
      case IDLE, CONNECTING -> {
        if (patience <= 0) {
          tryReplica(index + 1);
          return;
        }
        replica.channel().notifyWhenStateChanged(state, () -> tryReplica(index));
        CompletableFuture.delayedExecutor(patience, TimeUnit.NANOSECONDS)
            .execute(() -> tryReplica(index + 1));
      }
      case TRANSIENT_FAILURE -> tryReplica(index + 1);
    }
  }

  /** One that has connected meanwhile, or else that can tell what is wrong, or else the first. */
  private Replica lastResort() {
    List<Replica> heard =
        inTurn.stream()
            .filter(each -> each.state() == ConnectivityState.TRANSIENT_FAILURE)
            .toList();
    return inTurn.stream()
        .filter(Replica::isReady)
        .findFirst()
        .orElse(heard.isEmpty() ? inTurn.get(0) : heard.get(0));
  }

  private long leftNanos() {
    return options.getDeadline() == null
        ? Long.MAX_VALUE
        : options.getDeadline().timeRemaining(TimeUnit.NANOSECONDS);
  }

  private void choose(Replica replica) {
    if (chosen == null) {
      context.run(() -> chosen = replica.channel().newCall(method, options));
      context.run(() -> later.forEach(step -> step.accept(chosen)));
      later.clear();
    }
  }
}
