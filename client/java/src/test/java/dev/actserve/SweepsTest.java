package dev.actserve;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import com.google.rpc.RetryInfo;
import dev.actserve.v1.RunSweepRequest;
import dev.actserve.v1.RunSweepResponse;
import dev.actserve.v1.SweepCell;
import dev.actserve.v1.SweepPrompt;
import dev.actserve.v1.SweepServiceGrpc;
import dev.actserve.v1.SweepStarted;
import dev.actserve.v1.SweepVariant;
import io.grpc.Context;
import io.grpc.Grpc;
import io.grpc.InsecureServerCredentials;
import io.grpc.Server;
import io.grpc.Status;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.StreamObserver;
import java.time.Duration;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** What the conformance tests cannot see of a sweep that goes on: Java's own ways to cancel it. */
@Timeout(30)
final class SweepsTest {
  private static final RunSweepRequest REQUEST =
      RunSweepRequest.newBuilder()
          .addPrompts(SweepPrompt.getDefaultInstance())
          .addVariants(SweepVariant.newBuilder().addCoefficients(1).addCoefficients(2))
          .build();

  /** Loses a sweep after its first cell, and falls silent where it goes on. */
  private static final class Losing extends SweepServiceGrpc.SweepServiceImplBase {
    private final CountDownLatch goesOn = new CountDownLatch(1);
    private final CountDownLatch cancelled = new CountDownLatch(1);
    private volatile int delayS;

    @Override
    public void runSweep(RunSweepRequest request, StreamObserver<RunSweepResponse> responses) {
      if (!request.getResumeToken().isEmpty()) {
        var call = (ServerCallStreamObserver<RunSweepResponse>) responses;
        call.setOnCancelHandler(cancelled::countDown);
        goesOn.countDown();
        return;
      }
      var cell =
          SweepCell.newBuilder()
              .setCoefficientIndex(0)
              .setResumeToken(ByteString.copyFromUtf8("one"));
      responses.onNext(
          RunSweepResponse.newBuilder().setStarted(SweepStarted.newBuilder().setCells(2)).build());
      responses.onNext(RunSweepResponse.newBuilder().setCell(cell).build());
      var delay = com.google.protobuf.Duration.newBuilder().setSeconds(delayS);
      responses.onError(
          StatusProto.toStatusRuntimeException(
              com.google.rpc.Status.newBuilder()
                  .setCode(Status.Code.UNAVAILABLE.value())
                  .addDetails(Any.pack(RetryInfo.newBuilder().setRetryDelay(delay).build()))
                  .build()));
    }
  }

  private final Losing service = new Losing();
  private Server server;
  private ActserveClient client;

  @BeforeEach
  void start() throws Exception {
    server =
        Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
            .addService(service)
            .build()
            .start();
    client = ActserveClient.connect("localhost:" + server.getPort());
  }

  @AfterEach
  void stop() {
    client.close();
    server.shutdownNow();
  }

  @Test
  void interruptingTheThreadThatWaitsEndsIt() throws Exception {
    CompletableFuture<ActserveException> thrown = new CompletableFuture<>();
    Thread thread =
        new Thread(
            () ->
                thrown.complete(
                    assertThrows(ActserveException.class, () -> client.runSweep(REQUEST))));
    thread.start();
    service.goesOn.await();
    thread.interrupt();
    assertEquals(Status.Code.CANCELLED, thrown.get().code());
    service.cancelled.await();
  }

  @Test
  void cancellingTheContextEndsIt() throws Exception {
    Context.CancellableContext context = Context.current().withCancellation();
    CompletableFuture<SweepResult> future = context.call(() -> client.runSweepAsync(REQUEST));
    service.goesOn.await();
    context.cancel(null);
    assertEquals(Status.Code.CANCELLED, failure(future).code());
    service.cancelled.await();
  }

  @Test
  void closingTheClientEndsIt() throws Exception {
    CompletableFuture<SweepResult> future = client.runSweepAsync(REQUEST);
    service.goesOn.await();
    client.close();
    assertEquals(Status.Code.CANCELLED, failure(future).code());
    service.cancelled.await();
  }

  @Test
  void aPauseBeyondTheDeadlineIsNotBegun() {
    service.delayS = 25;
    ActserveClient hasty = client.withTimeout(Duration.ofSeconds(20));
    assertEquals(Status.Code.UNAVAILABLE, failure(hasty.runSweepAsync(REQUEST)).code());
  }

  private static ActserveException failure(CompletableFuture<SweepResult> future) {
    return ActserveException.from(assertThrows(Exception.class, future::get));
  }
}
