package dev.actserve;

import dev.actserve.v1.MonitorServiceGrpc;
import dev.actserve.v1.WatchAlertsRequest;
import dev.actserve.v1.WatchAlertsResponse;
import io.grpc.CallOptions;
import io.grpc.Channel;
import java.time.Duration;
import java.util.Iterator;
import java.util.NoSuchElementException;
import java.util.Optional;
import java.util.function.Consumer;

/**
 * Alerts as they are raised. It is read by one thread at a time, blocks until the next alert is
 * there, and lasts until it is closed, or until {@link #hasNext} or {@link #next} throw {@link
 * ActserveException}:
 *
 * <pre>{@code
 * try (var alerts = client.watchAlerts(request)) {
 *   for (var watched : alerts) {
 *     System.out.println(watched.alert().getMonitor() + " " + watched.alert().getScore());
 *   }
 * }
 * }</pre>
 *
 * <p>Where the connection is lost it goes on after the last alert that came, however long the
 * server is gone, such as while it starts again; {@link ActserveClientBuilder#onWarning} is told
 * when it is gone and when it is back. A first connection that cannot be made, and any other error,
 * ends it; a request with the {@code resume_token} of the last alert goes on later. A thread that
 * is interrupted cancels it.
 */
public final class AlertStream
    implements Iterable<WatchedAlert>, Iterator<WatchedAlert>, AutoCloseable {
  private final Channel channel;

  /** Has what waits to connect again do so at once. */
  private final Runnable connectNow;

  private final Reconnects reconnects;

  /** Moves on with each alert. */
  private WatchAlertsRequest request;

  // Guarded by this.
  private ResponseStream<WatchAlertsResponse> attempt;
  private boolean cancelled;

  /** Whether an event of this attempt has come. */
  private boolean isOpen;

  private long lost;
  private WatchedAlert next;
  private boolean ended;

  AlertStream(
      Channel channel, Runnable connectNow, Consumer<String> warn, WatchAlertsRequest request) {
    this.channel = channel;
    this.connectNow = connectNow;
    this.reconnects = new Reconnects(warn);
    this.request = request;
    open();
  }

  /** This stream itself. */
  @Override
  public Iterator<WatchedAlert> iterator() {
    return this;
  }

  @Override
  public boolean hasNext() {
    while (next == null && !ended) {
      try {
        // It ends only when the call does, so there is a next event or an error.
        read(attempt.next());
      } catch (ActserveException error) {
        Optional<Duration> pause = reconnects.pause(error);
        if (pause.isEmpty()) {
          ended = true;
          throw error;
        }
        sleep(pause.get());
        connectNow.run();
        open();
      }
    }
    return next != null;
  }

  @Override
  public WatchedAlert next() {
    if (!hasNext()) {
      throw new NoSuchElementException("the stream is at its end");
    }
    WatchedAlert alert = next;
    next = null;
    return alert;
  }

  private void read(WatchAlertsResponse response) {
    if (!isOpen) {
      isOpen = true;
      reconnects.opened();
    }
    switch (response.getEventCase()) {
      case STARTED ->
          request =
              request.toBuilder()
                  .setResumeToken(response.getStarted().getResumeToken())
                  .clearFromOldest()
                  .build();
      case LOST -> lost += response.getLost().getAlerts();
      case ALERT -> {
        reconnects.good();
        request =
            request.toBuilder()
                .setResumeToken(response.getAlert().getResumeToken())
                .clearFromOldest()
                .build();
        next = new WatchedAlert(response.getAlert(), lost);
        lost = 0;
      }
      case EVENT_NOT_SET -> {
        // An event of a newer server; the contract says to skip it.
      }
    }
  }

  private synchronized void open() {
    isOpen = false;
    lost = 0; // It is told again.
    attempt =
        ResponseStream.open(
            channel,
            MonitorServiceGrpc.getWatchAlertsMethod(),
            request,
            response -> false,
            CallOptions.DEFAULT.withOption(Timeout.LASTING, true));
    if (cancelled) {
      attempt.cancel();
    }
  }

  private synchronized void sleep(Duration pause) {
    long until = System.nanoTime() + pause.toNanos();
    try {
      for (long left = pause.toMillis(); !cancelled && left > 0; ) {
        wait(left);
        left = Duration.ofNanos(until - System.nanoTime()).toMillis();
      }
    } catch (InterruptedException interrupted) {
      ended = true;
      Thread.currentThread().interrupt();
      throw ActserveException.cancelled(interrupted);
    }
  }

  /** Ends it, from any thread. What is read after that fails as cancelled. */
  public synchronized void cancel() {
    cancelled = true;
    attempt.cancel();
    notifyAll();
  }

  /** Ends it. */
  @Override
  public void close() {
    cancel();
  }
}
