package dev.actserve;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;

import com.google.protobuf.Any;
import com.google.rpc.RetryInfo;
import dev.actserve.v1.AlertsStarted;
import dev.actserve.v1.MonitorServiceGrpc;
import dev.actserve.v1.WatchAlertsRequest;
import dev.actserve.v1.WatchAlertsResponse;
import io.grpc.Grpc;
import io.grpc.InsecureServerCredentials;
import io.grpc.Server;
import io.grpc.Status;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.StreamObserver;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** What the conformance tests cannot see of watched alerts: Java's own ways to end them. */
@Timeout(30)
final class AlertsTest {
  /** Begins and falls silent, or asks to come back after a while. */
  private static final class Silent extends MonitorServiceGrpc.MonitorServiceImplBase {
    private final CountDownLatch watched = new CountDownLatch(1);
    private final CountDownLatch cancelled = new CountDownLatch(1);
    private volatile int delayS;

    @Override
    public void watchAlerts(
        WatchAlertsRequest request, StreamObserver<WatchAlertsResponse> responses) {
      var call = (ServerCallStreamObserver<WatchAlertsResponse>) responses;
      call.setOnCancelHandler(cancelled::countDown);
      responses.onNext(
          WatchAlertsResponse.newBuilder().setStarted(AlertsStarted.getDefaultInstance()).build());
      if (delayS > 0) {
        var delay = com.google.protobuf.Duration.newBuilder().setSeconds(delayS);
        responses.onError(
            StatusProto.toStatusRuntimeException(
                com.google.rpc.Status.newBuilder()
                    .setCode(Status.Code.UNAVAILABLE.value())
                    .addDetails(Any.pack(RetryInfo.newBuilder().setRetryDelay(delay).build()))
                    .build()));
      }
      watched.countDown();
    }
  }

  private final Silent service = new Silent();
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

  /** Why a thread that reads alerts has ended. */
  private static CompletableFuture<ActserveException> reading(AlertStream alerts) {
    return CompletableFuture.supplyAsync(() -> assertThrows(ActserveException.class, alerts::next));
  }

  @Test
  void closingThemFromAnotherThreadEndsTheCall() throws Exception {
    AlertStream alerts = client.watchAlerts(WatchAlertsRequest.getDefaultInstance());
    CompletableFuture<ActserveException> thrown = reading(alerts);
    service.watched.await();
    alerts.close();
    assertEquals(Status.Code.CANCELLED, thrown.get().code());
    assertFalse(alerts.hasNext());
    service.cancelled.await();
  }

  @Test
  void closingThemEndsAPause() throws Exception {
    service.delayS = 29;
    AlertStream alerts = client.watchAlerts(WatchAlertsRequest.getDefaultInstance());
    CompletableFuture<ActserveException> thrown = reading(alerts);
    service.watched.await();
    alerts.close();
    assertEquals(Status.Code.CANCELLED, thrown.get().code());
  }

  @Test
  void interruptingTheThreadThatReadsThemEndsAPause() throws Exception {
    service.delayS = 29;
    AlertStream alerts = client.watchAlerts(WatchAlertsRequest.getDefaultInstance());
    CompletableFuture<ActserveException> thrown = new CompletableFuture<>();
    Thread thread =
        new Thread(() -> thrown.complete(assertThrows(ActserveException.class, alerts::next)));
    thread.start();
    service.watched.await();
    thread.interrupt();
    assertEquals(Status.Code.CANCELLED, thrown.get().code());
  }

  @Test
  void closingTheClientEndsTheCall() throws Exception {
    AlertStream alerts = client.watchAlerts(WatchAlertsRequest.getDefaultInstance());
    CompletableFuture<ActserveException> thrown = reading(alerts);
    service.watched.await();
    client.close();
    assertEquals(Status.Code.CANCELLED, thrown.get().code());
    service.cancelled.await();
  }
}
