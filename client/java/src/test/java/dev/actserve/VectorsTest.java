package dev.actserve;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;

import dev.actserve.v1.CombineSteeringVectorsRequest;
import dev.actserve.v1.CombineSteeringVectorsResponse;
import dev.actserve.v1.SteeringVectorServiceGrpc;
import io.grpc.Grpc;
import io.grpc.InsecureServerCredentials;
import io.grpc.Server;
import io.grpc.stub.StreamObserver;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import org.junit.jupiter.api.Test;

/** Calls that make a stored vector. */
final class VectorsTest {
  @Test
  void everyCallThatMakesAVectorHasAnIdOfItsOwn() throws Exception {
    Set<String> ids = ConcurrentHashMap.newKeySet();
    var service =
        new SteeringVectorServiceGrpc.SteeringVectorServiceImplBase() {
          @Override
          public void combineSteeringVectors(
              CombineSteeringVectorsRequest request,
              StreamObserver<CombineSteeringVectorsResponse> responses) {
            ids.add(request.getRequestId());
            responses.onNext(CombineSteeringVectorsResponse.getDefaultInstance());
            responses.onCompleted();
          }
        };
    Server server =
        Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
            .addService(service)
            .build()
            .start();
    try (ActserveClient client = ActserveClient.connect("localhost:" + server.getPort())) {
      client.combineSteeringVectors(CombineSteeringVectorsRequest.getDefaultInstance());
      client.combineSteeringVectors(CombineSteeringVectorsRequest.getDefaultInstance());
    } finally {
      server.shutdownNow();
    }
    assertEquals(2, ids.size());
    assertFalse(ids.contains(""));
  }
}
