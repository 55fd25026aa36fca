package dev.actserve;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.ForwardingClientCall.SimpleForwardingClientCall;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.Optional;

/** Gives every call the headers of the client. */
final class CallSettings implements ClientInterceptor {
  private static final Metadata.Key<String> MODEL = key("x-actserve-model");
  private static final String LIST_MODELS = "actserve.v1.ModelService/ListModels";

  private final Optional<String> model;
  private final Metadata headers = new Metadata();

  CallSettings(Optional<String> model, Optional<String> token, Map<String, String> metadata) {
    this.model = model.map(CallSettings::percentEncoded);
    metadata.forEach((name, value) -> headers.put(key(name), value));
    token.ifPresent(secret -> headers.put(key("authorization"), "Bearer " + secret));
  }

  @Override
  public <Q, R> ClientCall<Q, R> interceptCall(
      MethodDescriptor<Q, R> method, CallOptions options, Channel channel) {
    return new SimpleForwardingClientCall<>(channel.newCall(method, options)) {
      @Override
      public void start(Listener<R> listener, Metadata metadata) {
        metadata.merge(headers);
        // The list of models is of no model.
        if (model.isPresent() && !method.getFullMethodName().equals(LIST_MODELS)) {
          metadata.put(MODEL, model.get());
        }
        TraceContext.inject(metadata);
        super.start(listener, metadata);
      }
    };
  }

  private static Metadata.Key<String> key(String name) {
    return Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER);
  }

  /** A model's name may hold any character, and a header only some. */
  private static String percentEncoded(String name) {
    StringBuilder encoded = new StringBuilder();
    for (byte each : name.getBytes(StandardCharsets.UTF_8)) {
      boolean plain =
          each >= 'a' && each <= 'z'
              || each >= 'A' && each <= 'Z'
              || each >= '0' && each <= '9'
              || "-._~/".indexOf(each) >= 0;
      if (plain) {
        encoded.append((char) each);
      } else {
        encoded.append(String.format("%%%02X", each));
      }
    }
    return encoded.toString();
  }
}
