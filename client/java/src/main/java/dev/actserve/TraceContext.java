package dev.actserve;

import io.grpc.Metadata;
import io.opentelemetry.api.trace.propagation.W3CTraceContextPropagator;
import io.opentelemetry.context.Context;

/** Passes the trace that is current on to the server, where the application has OpenTelemetry. */
final class TraceContext {
  private static final boolean PRESENT = isPresent();

  private TraceContext() {}

  static void inject(Metadata headers) {
    if (PRESENT) {
      OpenTelemetry.inject(headers);
    }
  }

  private static boolean isPresent() {
    try {
      Class.forName(
          "io.opentelemetry.api.trace.propagation.W3CTraceContextPropagator",
          false,
          TraceContext.class.getClassLoader());
      return true;
    } catch (ClassNotFoundException absent) {
      return false;
    }
  }

  /** Apart, since it is loaded only where its classes are. */
  private static final class OpenTelemetry {
    static void inject(Metadata headers) {
      W3CTraceContextPropagator.getInstance()
          .inject(
              Context.current(),
              headers,
              (into, name, value) -> {
                Metadata.Key<String> key = Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER);
                // Instrumentation of the application's own may have set it already.
                if (into != null && !into.containsKey(key)) {
                  into.put(key, value);
                }
              });
    }
  }
}
