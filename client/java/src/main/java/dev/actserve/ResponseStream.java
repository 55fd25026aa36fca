package dev.actserve;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.lang.ref.Cleaner;
import java.util.Iterator;
import java.util.NoSuchElementException;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.function.Predicate;

/**
 * The events of a call, as they come. It is read once, by one thread at a time, and blocks until
 * the next event is there.
 *
 * <p>Closing it cancels what is left of the call:
 *
 * <pre>{@code
 * try (var events = client.streamGenerate(request)) {
 *   for (var event : events) {
 *     System.out.print(event.getTokens().getText());
 *   }
 * }
 * }</pre>
 *
 * <p>{@link #hasNext} and {@link #next} throw {@link ActserveException} if the call fails, is
 * cancelled, or ends before the server is finished. A thread that is interrupted cancels the call.
 *
 * @param <R> an event
 */
public final class ResponseStream<R> implements Iterable<R>, Iterator<R>, AutoCloseable {
  /** Events that may wait to be read; more are not asked of the server. */
  private static final int READ_AHEAD = 4;

  /** Cancels calls whose stream nobody has any more. */
  private static final Cleaner CLEANER = Cleaner.create();

  private final Source<?, R> source;
  private final Predicate<R> isLast;
  private final Cleaner.Cleanable cancellation;
  private R next;
  private boolean wasLast;
  private boolean ended;

  private ResponseStream(Source<?, R> source, Predicate<R> isLast) {
    this.source = source;
    this.isLast = isLast;
    cancellation = CLEANER.register(this, source::cancel);
  }

  static <Q, R> ResponseStream<R> open(
      Channel channel, MethodDescriptor<Q, R> method, Q request, Predicate<R> isLast) {
    return open(channel, method, request, isLast, CallOptions.DEFAULT);
  }

  static <Q, R> ResponseStream<R> open(
      Channel channel,
      MethodDescriptor<Q, R> method,
      Q request,
      Predicate<R> isLast,
      CallOptions options) {
    Source<Q, R> source = new Source<>(channel.newCall(method, options));
    source.call.start(source, new Metadata());
    source.call.request(READ_AHEAD);
    source.call.sendMessage(request);
    source.call.halfClose();
    return new ResponseStream<>(source, isLast);
  }

  /** This stream itself. */
  @Override
  public Iterator<R> iterator() {
    return this;
  }

  @Override
  public boolean hasNext() {
    if (next != null) {
      return true;
    }
    if (ended) {
      return false;
    }
    Object taken = take();
    if (taken instanceof End end) {
      ended = true;
      cancellation.clean();
      if (!end.status.isOk()) {
        throw ActserveException.of(end.status, end.trailers, null);
      }
      if (!wasLast) {
        throw ActserveException.cutShort();
      }
      return false;
    }
    @SuppressWarnings("unchecked")
    R response = (R) taken;
    source.call.request(1);
    wasLast |= isLast.test(response);
    next = response;
    return true;
  }

  private Object take() {
    try {
      return source.responses.take();
    } catch (InterruptedException interrupted) {
      cancel();
      ended = true;
      Thread.currentThread().interrupt();
      throw ActserveException.cancelled(interrupted);
    }
  }

  @Override
  public R next() {
    if (!hasNext()) {
      throw new NoSuchElementException("the stream is at its end");
    }
    R response = next;
    next = null;
    return response;
  }

  /**
   * Cancels the call unless it has ended, from any thread. What is read after that fails as
   * cancelled.
   */
  public void cancel() {
    cancellation.clean();
  }

  /** Cancels the call unless it has ended. */
  @Override
  public void close() {
    cancel();
  }

  private record End(Status status, Metadata trailers) {}

  /** What the call is written to. It knows nothing of the stream, which may so become garbage. */
  private static final class Source<Q, R> extends ClientCall.Listener<R> {
    private final ClientCall<Q, R> call;
    private final BlockingQueue<Object> responses = new LinkedBlockingQueue<>();

    Source(ClientCall<Q, R> call) {
      this.call = call;
    }

    void cancel() {
      call.cancel("the stream was closed", null);
      // What came before it is not read any more.
      responses.clear();
      Status closed = Status.CANCELLED.withDescription("the stream was closed");
      responses.add(new End(closed, new Metadata()));
    }

    @Override
    public void onMessage(R response) {
      responses.add(response);
    }

    @Override
    public void onClose(Status status, Metadata trailers) {
      responses.add(new End(status, trailers));
    }
  }
}
