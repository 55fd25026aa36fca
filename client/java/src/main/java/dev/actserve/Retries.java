package dev.actserve;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.Context;
import io.grpc.Deadline;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.time.Duration;
import java.util.HashSet;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.Executor;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/**
 * Makes calls again that ended as `UNAVAILABLE` before the caller got a message, if the contract
 * says that their method does no harm when it is called twice. Those that are {@link #RESUMABLE} go
 * on also after a message.
 *
 * <p>gRPC's own retries are off, since they know nothing of how long the server asks to wait.
 */
final class Retries implements ClientInterceptor, AutoCloseable {
  /** At most how long the pause before each further attempt is. */
  private static final Duration[] PAUSES = {
    Duration.ofMillis(250), Duration.ofMillis(750), Duration.ofMillis(2250)
  };

  /** A longer one is the caller's to wait for. */
  static final Duration LONGEST_DELAY = Duration.ofSeconds(30);

  /** What collects the answer of a call that goes on where it was lost. */
  static final CallOptions.Key<Resumable<?>> RESUMABLE = CallOptions.Key.create("resumable");

  /** An answer that goes on in another attempt. */
  interface Resumable<Q> {
    /** Whether the whole answer has come. */
    boolean isWhole();

    /** Gets ready for another attempt, and returns its request. */
    Q resume();
  }

  /**
   * How long to wait after so many attempts for the next one; empty if there is none.
   *
   * @param told how long the server asks to wait
   */
  static Optional<Duration> pause(int attempts, Optional<Duration> told) {
    Duration delay = told.orElse(Duration.ZERO);
    if (attempts > PAUSES.length || delay.compareTo(LONGEST_DELAY) > 0) {
      return Optional.empty();
    }
    long random = ThreadLocalRandom.current().nextLong(PAUSES[attempts - 1].toNanos() + 1);
    return Optional.of(Duration.ofNanos(Math.max(0, delay.toNanos()) + random));
  }

  // Has no thread until the first pause.
  private final ScheduledExecutorService timer =
      new ScheduledThreadPoolExecutor(
          1,
          task -> {
            Thread thread = new Thread(task, "actserve-retries");
            thread.setDaemon(true);
            return thread;
          });

  private final Set<RetriedCall<?, ?>> pausing = new HashSet<>();
  private boolean closed;

  @Override
  public <Q, R> ClientCall<Q, R> interceptCall(
      MethodDescriptor<Q, R> method, CallOptions options, Channel channel) {
    boolean harmless = method.isSafe() || method.isIdempotent();
    return harmless && method.getType().clientSendsOneMessage()
        ? new RetriedCall<>(method, options, channel)
        : channel.newCall(method, options);
  }

  /** Cancels the calls that wait for another attempt. */
  @Override
  public void close() {
    Set<RetriedCall<?, ?>> waiting;
    synchronized (pausing) {
      closed = true;
      waiting = Set.copyOf(pausing);
    }
    waiting.forEach(call -> call.endPause(Replicas.CLOSED, new Metadata()));
    timer.shutdownNow();
  }

  private final class RetriedCall<Q, R> extends ClientCall<Q, R> {
    private final MethodDescriptor<Q, R> method;
    private final CallOptions options;
    private final Channel channel;
    private final Context context = Context.current();
    private final Context.CancellationListener contextCancelled =
        ended -> cancel("the context was cancelled", ended.cancellationCause());

    // Guarded by this.
    private Listener<R> listener;
    private Metadata headers;
    private Q message;
    private boolean halfClosed;
    private int requested;
    private ClientCall<Q, R> attempt;
    private int attempts;
    private boolean cancelled;
    private ScheduledFuture<?> pause;

    RetriedCall(MethodDescriptor<Q, R> method, CallOptions options, Channel channel) {
      this.method = method;
      this.options = options;
      this.channel = channel;
    }

    @Override
    public synchronized void start(Listener<R> responses, Metadata metadata) {
      listener = responses;
      headers = metadata;
      attempt();
    }

    private synchronized void attempt() {
      attempts++;
      Metadata copy = new Metadata();
      copy.merge(headers);
      Context before = context.attach();
      try {
        attempt = channel.newCall(method, options);
        attempt.start(new AttemptListener(), copy);
      } finally {
        context.detach(before);
      }
      if (requested > 0) {
        attempt.request(requested);
      }
      if (message != null) {
        attempt.sendMessage(message);
      }
      if (halfClosed) {
        attempt.halfClose();
      }
    }

    @Override
    public synchronized void request(int count) {
      requested = (int) Math.min(Integer.MAX_VALUE, (long) requested + count);
      if (pause == null) {
        attempt.request(count);
      }
    }

    @Override
    public synchronized void sendMessage(Q request) {
      message = request;
      if (pause == null) {
        attempt.sendMessage(request);
      }
    }

    @Override
    public synchronized void halfClose() {
      halfClosed = true;
      if (pause == null) {
        attempt.halfClose();
      }
    }

    @Override
    public void cancel(String why, Throwable cause) {
      synchronized (this) {
        cancelled = true;
        if (pause == null) {
          attempt.cancel(why, cause);
          return;
        }
      }
      Status status = Status.CANCELLED.withDescription(why).withCause(cause);
      endPause(status, new Metadata());
    }

    /** Ends a pause early, unless it is over. */
    void endPause(Status status, Metadata trailers) {
      synchronized (this) {
        if (pause == null) {
          return;
        }
        pause.cancel(false);
        leavePause();
      }
      Executor executor = options.getExecutor();
      if (executor == null) {
        listener.onClose(status, trailers);
      } else {
        // A blocking stub waits for its executor, and for nothing else.
        executor.execute(() -> listener.onClose(status, trailers));
      }
    }

    private synchronized void resume() {
      if (pause != null) {
        leavePause();
        attempt();
      }
    }

    private void leavePause() {
      pause = null;
      context.removeListener(contextCancelled);
      synchronized (pausing) {
        pausing.remove(this);
      }
    }

    /** Whether the call is to be made again, after a pause that has begun then. */
    private boolean pauses(Status status, Metadata trailers) {
      if (status.getCode() != Status.Code.UNAVAILABLE || cancelled) {
        return false;
      }
      Optional<Duration> told = ActserveException.of(status, trailers, null).retryAfter();
      Optional<Duration> wait = Retries.pause(attempts, told);
      if (wait.isEmpty()) {
        return false;
      }
      long nanos = wait.get().toNanos();
      if (left(options.getDeadline()) <= nanos || left(context.getDeadline()) <= nanos) {
        return false;
      }
      synchronized (pausing) {
        if (closed) {
          return false;
        }
        pausing.add(this);
        pause = timer.schedule(this::resume, nanos, TimeUnit.NANOSECONDS);
      }
      // A running attempt hears of it by itself.
      context.addListener(contextCancelled, Runnable::run);
      return true;
    }

    /** Whether the call is to go on after what has come, after a pause that has begun then. */
    private boolean resumes(Status status, Metadata trailers) {
      @SuppressWarnings("unchecked")
      Resumable<Q> answer = (Resumable<Q>) options.getOption(RESUMABLE);
      if (answer == null || status.isOk() && answer.isWhole()) {
        return false;
      }
      Q rest = answer.resume();
      if (!rest.equals(message)) {
        // Something has come, so what is left is a call of its own, of which this was an attempt.
        attempts = 1;
      }
      message = rest;
      return pauses(status.isOk() ? Status.UNAVAILABLE : status, trailers);
    }

    private static long left(Deadline deadline) {
      return deadline == null ? Long.MAX_VALUE : deadline.timeRemaining(TimeUnit.NANOSECONDS);
    }

    /**
     * Tells nothing of an attempt before its first message or its end; the only message of a call
     * that has one counts no sooner than its status.
     */
    private final class AttemptListener extends Listener<R> {
      private Metadata received;
      private R only;
      private boolean answered;

      @Override
      public void onHeaders(Metadata metadata) {
        received = metadata;
      }

      @Override
      public void onMessage(R response) {
        if (method.getType().serverSendsOneMessage() && !answered && only == null) {
          only = response;
          return;
        }
        tell();
        listener.onMessage(response);
      }

      @Override
      public void onClose(Status status, Metadata trailers) {
        synchronized (RetriedCall.this) {
          if (answered ? resumes(status, trailers) : pauses(status, trailers)) {
            return;
          }
        }
        tell();
        listener.onClose(status, trailers);
      }

      @Override
      public void onReady() {
        listener.onReady();
      }

      private void tell() {
        answered = true;
        if (received != null) {
          listener.onHeaders(received);
          received = null;
        }
        if (only != null) {
          R response = only;
          only = null;
          listener.onMessage(response);
        }
      }
    }
  }
}
