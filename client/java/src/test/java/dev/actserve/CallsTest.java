package dev.actserve;

import static java.nio.charset.StandardCharsets.US_ASCII;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Any;
import com.google.rpc.RetryInfo;
import dev.actserve.v1.GenerateRequest;
import dev.actserve.v1.GenerateResponse;
import dev.actserve.v1.GenerateStarted;
import dev.actserve.v1.GenerationServiceGrpc;
import io.grpc.Context;
import io.grpc.Grpc;
import io.grpc.InsecureServerCredentials;
import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.ServerInterceptors;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.time.Duration;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** What the conformance tests cannot see: Java's own ways to cancel, and stubs on the channel. */
@Timeout(30)
final class CallsTest {
  private static final GenerateRequest REQUEST = GenerateRequest.getDefaultInstance();

  /** Begins a stream and falls silent, or refuses. */
  private static final class Silent extends GenerationServiceGrpc.GenerationServiceImplBase {
    private final CountDownLatch called = new CountDownLatch(1);
    private final CountDownLatch cancelled = new CountDownLatch(1);
    private final BlockingQueue<RuntimeException> refusals = new LinkedBlockingQueue<>();

    @Override
    public void generate(GenerateRequest request, StreamObserver<GenerateResponse> responses) {
      RuntimeException refusal = refusals.poll();
      if (refusal != null) {
        responses.onError(refusal);
        called.countDown();
        return;
      }
      var call = (ServerCallStreamObserver<GenerateResponse>) responses;
      call.setOnCancelHandler(cancelled::countDown);
      responses.onNext(
          GenerateResponse.newBuilder().setStarted(GenerateStarted.getDefaultInstance()).build());
      called.countDown();
    }
  }

  private final Silent service = new Silent();
  private final BlockingQueue<Metadata> headers = new LinkedBlockingQueue<>();
  private Server server;
  private ActserveClient client;

  @BeforeEach
  void start() throws Exception {
    ServerInterceptor keepHeaders =
        new ServerInterceptor() {
          @Override
          public <Q, R> ServerCall.Listener<Q> interceptCall(
              ServerCall<Q, R> call, Metadata sent, ServerCallHandler<Q, R> next) {
            headers.add(sent);
            return next.startCall(call, sent);
          }
        };
    server =
        Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
            .addService(ServerInterceptors.intercept(service, keepHeaders))
            .build()
            .start();
    client = ActserveClient.builder("localhost:" + server.getPort()).token("secret").build();
  }

  @AfterEach
  void stop() {
    client.close();
    server.shutdownNow();
  }

  @Test
  void interruptingTheThreadThatWaitsCancelsTheCall() throws Exception {
    CompletableFuture<ActserveException> thrown = new CompletableFuture<>();
    Thread thread =
        new Thread(
            () -> {
              ActserveException error =
                  assertThrows(ActserveException.class, () -> client.generate(REQUEST));
              assertTrue(Thread.currentThread().isInterrupted());
              thrown.complete(error);
            });
    thread.start();
    service.called.await();
    thread.interrupt();
    assertEquals(Status.Code.CANCELLED, thrown.get().code());
    service.cancelled.await();
  }

  @Test
  void cancellingTheFutureCancelsTheCall() throws Exception {
    CompletableFuture<GenerateResult> future = client.generateAsync(REQUEST);
    service.called.await();
    future.cancel(true);
    assertThrows(CancellationException.class, future::join);
    service.cancelled.await();
  }

  @Test
  void aFutureThatEndsFromOutsideCancelsTheCall() throws Exception {
    CompletableFuture<GenerateResult> future = client.generateAsync(REQUEST);
    service.called.await();
    future.orTimeout(1, TimeUnit.MILLISECONDS);
    assertThrows(ExecutionException.class, future::get);
    service.cancelled.await();
  }

  @Test
  void oneCallMayHaveAnotherTimeout() throws Exception {
    ActserveClient hasty = client.withTimeout(Duration.ofMillis(200));
    assertEquals(Status.Code.DEADLINE_EXCEEDED, thrown(hasty).code());
    ActserveClient patient = hasty.withTimeout(Duration.ofSeconds(Long.MAX_VALUE));
    CompletableFuture<GenerateResult> future = patient.generateAsync(REQUEST);
    assertThrows(TimeoutException.class, () -> future.get(300, TimeUnit.MILLISECONDS));
  }

  @Test
  void anErrorIsNotItsOwnCause() {
    service.refusals.add(Status.INVALID_ARGUMENT.withDescription("no").asRuntimeException());
    assertNull(thrown(client).getCause());
  }

  @Test
  void replicasThatAreSilentOrSpeakAnotherProtocolArePassedOver() throws Exception {
    InetAddress loopback = InetAddress.getLoopbackAddress();
    try (ServerSocket silent = new ServerSocket(0, 50, loopback);
        ServerSocket other = new ServerSocket(0, 50, loopback)) {
      Thread banner =
          new Thread(
              () -> {
                try {
                  while (true) {
                    other.accept().getOutputStream().write("SSH-2.0-x\r\n".getBytes(US_ASCII));
                  }
                } catch (IOException closed) {
                  // The test is over.
                }
              });
      banner.start();
      String spoken = "localhost:" + other.getLocalPort();
      String mute = "localhost:" + silent.getLocalPort();
      try (ActserveClient several =
          ActserveClient.builder(mute, spoken, "localhost:" + server.getPort()).build()) {
        for (int call = 0; call < 3; call++) {
          assertTrue(several.streamGenerate(REQUEST).hasNext());
        }
      }
      try (ActserveClient alone = ActserveClient.connect(spoken)) {
        assertEquals(Status.Code.UNAVAILABLE, thrown(alone).code());
      }
    }
  }

  private static ActserveException thrown(ActserveClient by) {
    return assertThrows(ActserveException.class, () -> by.generate(REQUEST));
  }

  @Test
  void cancellingTheContextEndsAPause() throws Exception {
    service.refusals.add(Status.UNAVAILABLE.asRuntimeException());
    service.refusals.add(Status.UNAVAILABLE.asRuntimeException());
    service.refusals.add(Status.UNAVAILABLE.asRuntimeException());
    Context.CancellableContext context = Context.current().withCancellation();
    CompletableFuture<GenerateResult> future = context.call(() -> client.generateAsync(REQUEST));
    service.called.await();
    context.cancel(null);
    Exception failed = assertThrows(Exception.class, future::get);
    assertEquals(Status.Code.CANCELLED, ActserveException.from(failed).code());
  }

  @Test
  void aStreamThatNobodyHasAnyMoreIsCancelled() throws Exception {
    assertTrue(client.streamGenerate(REQUEST).hasNext());
    while (!service.cancelled.await(50, TimeUnit.MILLISECONDS)) {
      System.gc();
    }
  }

  @Test
  void closingTheClientEndsWhatWaits() throws Exception {
    CompletableFuture<GenerateResult> future = client.generateAsync(REQUEST);
    service.called.await();
    client.close();
    Exception failed = assertThrows(Exception.class, future::get);
    assertEquals(Status.Code.CANCELLED, ActserveException.from(failed).code());
    assertEquals(Status.Code.CANCELLED, thrown(client).code());
  }

  @Test
  void closingTheClientEndsAPause() throws Exception {
    for (int attempt = 0; attempt < 3; attempt++) {
      service.refusals.add(Status.UNAVAILABLE.withDescription("full").asRuntimeException());
    }
    CompletableFuture<GenerateResult> future = client.generateAsync(REQUEST);
    service.called.await();
    client.close();
    Exception failed = assertThrows(Exception.class, future::get);
    assertEquals(Status.Code.CANCELLED, ActserveException.from(failed).code());
  }

  @Test
  void interruptingABlockingStubEndsItsPause() throws Exception {
    var delay = com.google.protobuf.Duration.newBuilder().setSeconds(20);
    var packed = Any.pack(RetryInfo.newBuilder().setRetryDelay(delay).build());
    var full =
        com.google.rpc.Status.newBuilder()
            .setCode(Status.Code.UNAVAILABLE.value())
            .addDetails(packed)
            .build();
    service.refusals.add(StatusProto.toStatusRuntimeException(full));
    CompletableFuture<ActserveException> thrown = new CompletableFuture<>();
    var stub = GenerationServiceGrpc.newBlockingStub(client.channel());
    Thread thread =
        new Thread(
            () -> {
              Exception failed = assertThrows(Exception.class, () -> stub.generate(REQUEST).next());
              thrown.complete(ActserveException.from(failed));
            });
    thread.start();
    service.called.await();
    Thread.sleep(200); // The refusal has come.
    thread.interrupt();
    assertEquals(Status.Code.CANCELLED, thrown.get().code());
  }

  @Test
  void stubsOnTheChannelHaveHeadersAttemptsAndErrors() throws Exception {
    service.refusals.add(Status.UNAVAILABLE.asRuntimeException());
    service.refusals.add(Status.INVALID_ARGUMENT.withDescription("no").asRuntimeException());
    var stub = GenerationServiceGrpc.newBlockingStub(client.channel());
    StatusRuntimeException thrown =
        assertThrows(StatusRuntimeException.class, () -> stub.generate(REQUEST).next());
    ActserveException error = ActserveException.from(thrown);
    assertEquals(Status.Code.INVALID_ARGUMENT, error.code());
    assertEquals("no", error.getMessage());
    for (int attempt = 0; attempt < 2; attempt++) {
      Metadata.Key<String> token =
          Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
      assertEquals("Bearer secret", headers.take().get(token));
    }
  }
}
