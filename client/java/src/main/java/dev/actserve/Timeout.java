package dev.actserve;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.MethodDescriptor;
import java.time.Duration;
import java.util.concurrent.TimeUnit;

/** Gives every call that has no deadline one, unless it is to last. */
final class Timeout implements ClientInterceptor {
  /** What is longer, which nanoseconds of 64 bits cannot tell, is as good as for ever. */
  private static final Duration LONGEST = Duration.ofNanos(Long.MAX_VALUE);

  /** Set for a call that is to last until it is ended. */
  static final CallOptions.Key<Boolean> LASTING =
      CallOptions.Key.createWithDefault("lasting", false);

  private final long nanos;

  Timeout(Duration timeout) {
    if (timeout.isNegative() || timeout.isZero()) {
      throw ActserveException.invalid(
          "FIELD_INVALID", "timeout", "the timeout is %s; it must be above zero", timeout);
    }
    nanos = timeout.compareTo(LONGEST) < 0 ? timeout.toNanos() : Long.MAX_VALUE;
  }

  @Override
  public <Q, R> ClientCall<Q, R> interceptCall(
      MethodDescriptor<Q, R> method, CallOptions options, Channel channel) {
    return channel.newCall(
        method,
        options.getDeadline() == null && !options.getOption(LASTING)
            ? options.withDeadlineAfter(nanos, TimeUnit.NANOSECONDS)
            : options);
  }
}
