package dev.actserve;

import io.grpc.ChannelCredentials;
import io.grpc.ClientInterceptor;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.TlsChannelCredentials;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;

/** Settings of a client, made by {@link ActserveClient#builder}. */
public final class ActserveClientBuilder {
  private static final Duration DEFAULT_TIMEOUT = Duration.ofSeconds(600);
  private static final System.Logger LOGGER = System.getLogger("dev.actserve");

  private final List<String> targets;
  private boolean tls;
  private Optional<Path> authorities = Optional.empty();
  private Optional<Path> certificate = Optional.empty();
  private Optional<Path> key = Optional.empty();
  private Optional<String> token = Optional.empty();
  private boolean plaintextToken;
  private Optional<Duration> timeout = Optional.of(DEFAULT_TIMEOUT);
  private Optional<String> model = Optional.empty();
  private final Map<String, String> headers = new LinkedHashMap<>();
  private Consumer<String> onWarning = text -> LOGGER.log(System.Logger.Level.WARNING, text);

  ActserveClientBuilder(List<String> targets) {
    this.targets = List.copyOf(targets);
  }

  /** Speaks TLS, and trusts the authorities of the system. */
  public ActserveClientBuilder tls() {
    tls = true;
    return this;
  }

  /**
   * Speaks TLS, and trusts these authorities alone.
   *
   * @param authorities a PEM file
   */
  public ActserveClientBuilder tls(Path authorities) {
    this.authorities = Optional.of(authorities);
    return tls();
  }

  /**
   * Speaks TLS, and shows the server a certificate.
   *
   * @param certificate a PEM file, with all of its chain
   * @param key a PEM file
   */
  public ActserveClientBuilder clientCertificate(Path certificate, Path key) {
    this.certificate = Optional.of(certificate);
    this.key = Optional.of(key);
    return tls();
  }

  /** Sends this bearer token with every call. */
  public ActserveClientBuilder token(String token) {
    this.token = Optional.of(token);
    return this;
  }

  /** Sends the token in plaintext to other machines too, such as through a tunnel. */
  public ActserveClientBuilder allowPlaintextToken() {
    plaintextToken = true;
    return this;
  }

  /** How long a call may take, with all its attempts; 600 seconds if this is not called. */
  public ActserveClientBuilder timeout(Duration timeout) {
    this.timeout = Optional.of(timeout);
    return this;
  }

  /** Lets calls take as long as they do. */
  public ActserveClientBuilder noTimeout() {
    timeout = Optional.empty();
    return this;
  }

  /**
   * Names the model in a header of every call, by which a proxy in front of several servers can
   * choose one.
   *
   * @param model such as {@code models/smollm2-135m}, or without {@code models/}
   */
  public ActserveClientBuilder model(String model) {
    this.model = Optional.of(model.startsWith("models/") ? model : "models/" + model);
    return this;
  }

  /** Sends this header with every call. */
  public ActserveClientBuilder header(String name, String value) {
    headers.put(name, value);
    return this;
  }

  /**
   * Takes what the client warns of; it goes to the {@link System.Logger} of the package otherwise.
   */
  public ActserveClientBuilder onWarning(Consumer<String> onWarning) {
    this.onWarning = onWarning;
    return this;
  }

  /**
   * The client. It connects when it is first called.
   *
   * @throws ActserveException {@code FIELD_INVALID} if a setting cannot be, such as a token that
   *     would go to another machine in plaintext
   */
  public ActserveClient build() {
    List<String> addresses = targets.stream().map(Targets::checked).toList();
    check();
    List<ClientInterceptor> settings = new ArrayList<>(List.of(settings()));
    timeout.map(Timeout::new).ifPresent(settings::add);
    ChannelCredentials credentials = credentials();
    List<ManagedChannel> channels = new ArrayList<>();
    try {
      addresses.forEach(target -> channels.add(channel(target, credentials)));
    } catch (RuntimeException refused) {
      // gRPC has several of them, such as of a certificate that is none.
      channels.forEach(ManagedChannel::shutdownNow);
      throw invalid(tls ? "tls" : "target", "no connection can be so: %s", refused.getMessage());
    }
    return ActserveClient.of(new Replicas(channels), onWarning, settings);
  }

  private void check() {
    token.ifPresent(secret -> checkPrintable("token", "the token", secret));
    headers.forEach((name, value) -> checkPrintable("header", "the header " + name, value));
    boolean secret =
        token.isPresent() || headers.keySet().stream().anyMatch("authorization"::equalsIgnoreCase);
    if (!secret || tls || plaintextToken) {
      return;
    }
    for (String target : targets) {
      if (!Targets.isLocal(target)) {
        throw invalid(
            "token",
            "the token would go to %s in plaintext, where everyone on the way can read it; call"
                + " tls(), or allowPlaintextToken() where the way is safe, such as a tunnel",
            target);
      }
    }
  }

  private static void checkPrintable(String field, String what, String value) {
    if (!value.chars().allMatch(each -> each >= ' ' && each <= '~')) {
      throw invalid(
          field, "%s is not a text of printable ASCII characters; take away line breaks", what);
    }
  }

  private CallSettings settings() {
    try {
      return new CallSettings(model, token, headers);
    } catch (IllegalArgumentException notName) {
      throw invalid("header", "a header cannot be called so: %s", notName.getMessage());
    }
  }

  private ChannelCredentials credentials() {
    if (!tls) {
      return InsecureChannelCredentials.create();
    }
    TlsChannelCredentials.Builder credentials = TlsChannelCredentials.newBuilder();
    try {
      if (authorities.isPresent()) {
        credentials.trustManager(authorities.get().toFile());
      }
      if (certificate.isPresent()) {
        byte[] chain = Files.readAllBytes(certificate.get());
        byte[] secret = PrivateKeys.read(key.get());
        if (!PrivateKeys.belongs(secret, chain)) {
          throw invalid(
              "tls",
              "the key of %s is not that of the certificate of %s; give the key that the"
                  + " certificate was issued for",
              key.get(),
              certificate.get());
        }
        credentials.keyManager(new ByteArrayInputStream(chain), new ByteArrayInputStream(secret));
      }
    } catch (ActserveException refused) {
      throw refused;
    } catch (IOException | GeneralSecurityException | RuntimeException unreadable) {
      // A key that is no base64 is an IllegalArgumentException.
      throw invalid("tls", "a file for TLS cannot be read: %s", unreadable.getMessage());
    }
    return credentials.build();
  }

  private static ManagedChannel channel(String target, ChannelCredentials credentials) {
    return Grpc.newChannelBuilder(target, credentials)
        .userAgent("actserve-java/" + VersionCheck.CLIENT)
        // A name with many addresses is many replicas; gRPC's default would use only one.
        .defaultLoadBalancingPolicy("round_robin")
        .disableServiceConfigLookUp()
        // Of Retries instead.
        .disableRetry()
        // A server that vanished without closing the connection would never be noticed while a call
        // waits for its first row.
        .keepAliveTime(60, TimeUnit.SECONDS)
        .keepAliveTimeout(20, TimeUnit.SECONDS)
        // Errors have their details in trailers, which the 8 KiB of the default may not hold. No
        // message of the contract comes near the default of 4 MiB.
        .maxInboundMetadataSize(64 << 10)
        .build();
  }

  private static ActserveException invalid(String field, String message, Object... values) {
    return ActserveException.invalid("FIELD_INVALID", field, message, values);
  }
}
