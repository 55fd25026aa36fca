package dev.actserve;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;

import com.google.protobuf.ByteString;
import dev.actserve.v1.BeginUploadRequest;
import dev.actserve.v1.BeginUploadResponse;
import dev.actserve.v1.Dictionary;
import dev.actserve.v1.DictionaryMatrix;
import dev.actserve.v1.DictionaryServiceGrpc;
import dev.actserve.v1.FinishUploadRequest;
import dev.actserve.v1.FinishUploadResponse;
import io.grpc.Grpc;
import io.grpc.InsecureServerCredentials;
import io.grpc.Server;
import io.grpc.stub.StreamObserver;
import java.util.List;
import java.util.concurrent.CopyOnWriteArrayList;
import org.junit.jupiter.api.Test;

/** Uploads of dictionaries. */
final class UploadTest {
  @Test
  void anUploadHasTheIdOfWhatIsUploaded() throws Exception {
    List<String> ids = new CopyOnWriteArrayList<>();
    var service =
        new DictionaryServiceGrpc.DictionaryServiceImplBase() {
          @Override
          public void beginUpload(
              BeginUploadRequest request, StreamObserver<BeginUploadResponse> responses) {
            ids.add(request.getRequestId());
            responses.onNext(
                BeginUploadResponse.newBuilder().setMaxChunkBytes(8).addReceivedBytes(1).build());
            responses.onCompleted();
          }

          @Override
          public void finishUpload(
              FinishUploadRequest request, StreamObserver<FinishUploadResponse> responses) {
            responses.onNext(
                FinishUploadResponse.newBuilder()
                    .setDictionary(Dictionary.getDefaultInstance())
                    .build());
            responses.onCompleted();
          }
        };
    Server server =
        Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
            .addService(service)
            .build()
            .start();
    BeginUploadRequest request =
        BeginUploadRequest.newBuilder().addMatrices(DictionaryMatrix.getDefaultInstance()).build();
    try (ActserveClient client = ActserveClient.connect("localhost:" + server.getPort())) {
      for (String content : List.of("a", "a", "b")) {
        client.uploadDictionary(request, List.of(ByteString.copyFromUtf8(content)));
      }
    } finally {
      server.shutdownNow();
    }
    assertEquals(ids.get(0), ids.get(1));
    assertNotEquals(ids.get(0), ids.get(2));
  }
}
