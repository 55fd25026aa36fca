package dev.actserve;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.ForwardingClientCall.SimpleForwardingClientCall;
import io.grpc.ForwardingClientCallListener.SimpleForwardingClientCallListener;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.function.Consumer;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** Warns once of a server that is older than the client, and so may not know all that it asks. */
final class VersionCheck implements ClientInterceptor {
  /** The client's own version. */
  static final String CLIENT = read();

  private static final Metadata.Key<String> SERVER =
      Metadata.Key.of("x-actserve-version", Metadata.ASCII_STRING_MARSHALLER);
  private static final Pattern VERSION = Pattern.compile("([0-9]{1,9})\\.([0-9]{1,9})(\\..*)?");

  private final Consumer<String> warn;
  private final AtomicBoolean warned = new AtomicBoolean();

  VersionCheck(Consumer<String> warn) {
    this.warn = warn;
  }

  @Override
  public <Q, R> ClientCall<Q, R> interceptCall(
      MethodDescriptor<Q, R> method, CallOptions options, Channel channel) {
    return new SimpleForwardingClientCall<>(channel.newCall(method, options)) {
      @Override
      public void start(Listener<R> listener, Metadata headers) {
        super.start(
            new SimpleForwardingClientCallListener<>(listener) {
              @Override
              public void onClose(Status status, Metadata trailers) {
                check(trailers.get(SERVER));
                super.onClose(status, trailers);
              }
            },
            headers);
      }
    };
  }

  private void check(String server) {
    if (server != null && isOlder(server, CLIENT) && warned.compareAndSet(false, true)) {
      warn.accept(
          "the server has version "
              + server
              + ", which is older than the client's, "
              + CLIENT
              + "; it refuses what it does not know, so upgrade it");
    }
  }

  /**
   * Whether major and minor of a version are older than another's; false for what is no version.
   */
  static boolean isOlder(String version, String than) {
    Matcher one = VERSION.matcher(version);
    Matcher other = VERSION.matcher(than);
    if (!one.matches() || !other.matches()) {
      return false;
    }
    int major = Integer.compare(number(one, 1), number(other, 1));
    return major < 0 || major == 0 && number(one, 2) < number(other, 2);
  }

  private static int number(Matcher version, int part) {
    return Integer.parseInt(version.group(part));
  }

  private static String read() {
    try (InputStream file = VersionCheck.class.getResourceAsStream("version.properties")) {
      Properties properties = new Properties();
      properties.load(file);
      return properties.getProperty("version");
    } catch (IOException unreadable) {
      throw new UncheckedIOException(unreadable);
    }
  }
}
