package dev.actserve;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RequestInfo;
import com.google.rpc.RetryInfo;
import dev.actserve.v1.Work;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.StatusRuntimeException;
import java.time.Duration;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutionException;

/**
 * A call that was refused or failed, or a value that cannot be sent.
 *
 * <p>The message names the value, the limit and the fix; {@link #code} and {@link #reason} are for
 * programs.
 */
public final class ActserveException extends RuntimeException {
  private static final long serialVersionUID = 1;

  /** {@code ErrorInfo.domain} of every reason that the service owns. */
  private static final String DOMAIN = "actserve.dev";

  private static final Metadata.Key<byte[]> DETAILS =
      Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);

  private final Status.Code code;
  private final String reason;
  private final String field;
  private final transient Map<String, String> metadata;
  private final transient Optional<Duration> retryAfter;
  private final String requestId;

  private ActserveException(
      Status.Code code,
      String reason,
      String message,
      String field,
      Map<String, String> metadata,
      Optional<Duration> retryAfter,
      String requestId,
      Throwable cause) {
    super(message, cause);
    this.code = code;
    this.reason = reason;
    this.field = field;
    this.metadata = metadata;
    this.retryAfter = retryAfter;
    this.requestId = requestId;
  }

  /** The gRPC code. */
  public Status.Code code() {
    return code;
  }

  /**
   * The reason, a name of {@link dev.actserve.v1.ErrorReason} without its prefix, such as {@code
   * LAYER_OUT_OF_RANGE}; {@code STREAM_CUT_SHORT} if a stream ended before the server was finished;
   * {@code BAD_RESPONSE} if the answer breaks the contract; empty if the failure is not the
   * service's own.
   */
  public String reason() {
    return reason;
  }

  /**
   * The field of the request that is to blame, such as {@code items[0].prompt}; empty if none is.
   */
  public String field() {
    return field;
  }

  /** The values of the message, for programs. */
  public Map<String, String> metadata() {
    return metadata == null ? Map.of() : metadata;
  }

  /** After how long the server suggests to try again. */
  public Optional<Duration> retryAfter() {
    return retryAfter == null ? Optional.empty() : retryAfter;
  }

  /** The server's id of the call, which its logs have too; empty if the server has not answered. */
  public String requestId() {
    return requestId;
  }

  @Override
  public String toString() {
    String what = reason.isEmpty() ? code.name() : reason;
    String where = field.isEmpty() ? "" : ", " + field;
    return getClass().getName() + ": " + getMessage() + " (" + what + where + ")";
  }

  /**
   * The error that something thrown stands for: by a stub on {@link ActserveClient#channel}, or by
   * the future of an asynchronous call.
   *
   * @param thrown a {@link StatusRuntimeException}, a {@link CancellationException}, what wraps one
   *     of these, or anything else, which becomes an {@code UNKNOWN} error with this cause
   * @return the error; never null
   */
  public static ActserveException from(Throwable thrown) {
    if (thrown instanceof ActserveException error) {
      return error;
    }
    if (thrown instanceof StatusRuntimeException error) {
      return of(error.getStatus(), error.getTrailers(), error);
    }
    if (thrown instanceof StatusException error) {
      return of(error.getStatus(), error.getTrailers(), error);
    }
    if (thrown instanceof CancellationException) {
      return cancelled(thrown);
    }
    boolean wraps = thrown instanceof CompletionException || thrown instanceof ExecutionException;
    if (wraps && thrown.getCause() != null) {
      return from(thrown.getCause());
    }
    return simple(Status.Code.UNKNOWN, "", String.valueOf(thrown.getMessage()), "", thrown);
  }

  /** The error of a call that ended so. */
  static ActserveException of(Status status, Metadata trailers, Throwable cause) {
    com.google.rpc.Status details = com.google.rpc.Status.getDefaultInstance();
    byte[] packed = trailers == null ? null : trailers.get(DETAILS);
    if (packed != null) {
      try {
        details = com.google.rpc.Status.parseFrom(packed);
      } catch (InvalidProtocolBufferException unreadable) {
        // Details of a proxy are no reason to hide the status itself.
      }
    }
    String message = status.getDescription() == null ? "" : status.getDescription();
    Throwable connection = status.getCause();
    if (status.getCode() == Status.Code.UNAVAILABLE && connection != null) {
      // gRPC's own words are "io exception" only, and never the fix.
      message += ": " + connection.getMessage() + "; check that the server runs there";
    }
    return of(status.getCode(), message, details, cause == null ? connection : cause);
  }

  /** Why work has failed. */
  static ActserveException of(Work work) {
    return work.getError().getCode() == 0
        ? badResponse("the server failed at its work without saying why")
        : of(work.getError(), "");
  }

  /** The error of an item of a call that has this id. */
  static ActserveException of(com.google.rpc.Status status, String callId) {
    var error = of(Status.fromCodeValue(status.getCode()).getCode(), "", status, null);
    return error.requestId.isEmpty() ? error.with(callId, null) : error;
  }

  private static ActserveException of(
      Status.Code code, String told, com.google.rpc.Status status, Throwable cause) {
    String message = told.isEmpty() ? status.getMessage() : told;
    String reason = "";
    String field = "";
    Map<String, String> metadata = Map.of();
    Optional<Duration> retryAfter = Optional.empty();
    String requestId = "";
    for (Any packed : status.getDetailsList()) {
      if (packed.is(ErrorInfo.class)) {
        ErrorInfo info = unpack(packed, ErrorInfo.getDefaultInstance());
        if (info.getDomain().equals(DOMAIN)) {
          reason = info.getReason();
          metadata = Map.copyOf(info.getMetadataMap());
        }
      } else if (packed.is(BadRequest.class)) {
        BadRequest bad = unpack(packed, BadRequest.getDefaultInstance());
        for (BadRequest.FieldViolation violation : bad.getFieldViolationsList()) {
          if (field.isEmpty() && !violation.getField().isEmpty()) {
            field = violation.getField();
            // The message of the status begins with the field, which is told apart here.
            message = violation.getDescription().isEmpty() ? message : violation.getDescription();
          }
        }
      } else if (packed.is(RetryInfo.class)) {
        RetryInfo retry = unpack(packed, RetryInfo.getDefaultInstance());
        if (retry.hasRetryDelay()) {
          retryAfter = Optional.of(delay(retry.getRetryDelay()));
        }
      } else if (packed.is(RequestInfo.class)) {
        requestId = unpack(packed, RequestInfo.getDefaultInstance()).getRequestId();
      }
    }
    if (message.isEmpty()) {
      message = code.name().toLowerCase(java.util.Locale.ROOT).replace('_', ' ');
    }
    return new ActserveException(
        code, reason, message, field, metadata, retryAfter, requestId, cause);
  }

  /** A delay, which is zero if it is negative. */
  private static Duration delay(com.google.protobuf.Duration told) {
    if (told.getSeconds() < 0) {
      return Duration.ZERO;
    }
    try {
      Duration delay = Duration.ofSeconds(told.getSeconds(), told.getNanos());
      return delay.isNegative() ? Duration.ZERO : delay;
    } catch (ArithmeticException overflow) {
      return Duration.ofSeconds(Long.MAX_VALUE);
    }
  }

  private static <M extends Message> M unpack(Any packed, M none) {
    try {
      @SuppressWarnings("unchecked")
      M message = (M) none.getParserForType().parseFrom(packed.getValue());
      return message;
    } catch (InvalidProtocolBufferException unreadable) {
      return none;
    }
  }

  /** A request that can never succeed as it is; raised before anything is sent. */
  static ActserveException invalid(String reason, String field, String message, Object... values) {
    return simple(Status.Code.INVALID_ARGUMENT, reason, message.formatted(values), field, null);
  }

  /** The server broke the contract, so its answer is withheld. */
  static ActserveException badResponse(String message, Object... values) {
    return simple(Status.Code.INTERNAL, "BAD_RESPONSE", message.formatted(values), "", null);
  }

  /** The stream ended without `finished`: what arrived is incomplete and is withheld. */
  static ActserveException cutShort() {
    String message =
        "the stream ended before the server said it was finished, so the answer may be incomplete;"
            + " try again";
    return simple(Status.Code.UNAVAILABLE, "STREAM_CUT_SHORT", message, "", null);
  }

  /** Whoever waits for an answer has cancelled it. */
  static ActserveException cancelled(Throwable cause) {
    return simple(Status.Code.CANCELLED, "", "the call was cancelled", "", cause);
  }

  /** This error with the stack of whoever waited for it. */
  ActserveException here() {
    return with(requestId, getCause());
  }

  private ActserveException with(String request, Throwable cause) {
    return new ActserveException(
        code, reason, getMessage(), field, metadata(), retryAfter(), request, cause);
  }

  private static ActserveException simple(
      Status.Code code, String reason, String message, String field, Throwable cause) {
    return new ActserveException(
        code, reason, message, field, Map.of(), Optional.empty(), "", cause);
  }
}
