package dev.actserve;

import com.google.protobuf.ByteString;
import dev.actserve.v1.BeginUploadRequest;
import dev.actserve.v1.BeginUploadResponse;
import dev.actserve.v1.Dictionary;
import dev.actserve.v1.DictionaryServiceGrpc;
import dev.actserve.v1.FinishUploadRequest;
import dev.actserve.v1.UploadChunkRequest;
import io.grpc.Channel;
import java.nio.ByteBuffer;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HexFormat;
import java.util.List;
import java.util.zip.CRC32C;

/**
 * Sends a dictionary: begins the upload, sends what the server lacks of each matrix, and ends it.
 */
final class Upload {
  private final Channel channel;
  private final List<ByteString> contents;
  private BeginUploadResponse begun;

  private Upload(Channel channel, List<ByteString> contents) {
    this.channel = channel;
    this.contents = contents;
  }

  static Dictionary run(Channel channel, BeginUploadRequest request, List<ByteString> contents) {
    if (contents.size() != request.getMatricesCount()) {
      throw ActserveException.invalid(
          "FIELD_INVALID",
          "matrices",
          "the bytes of %s matrices are given for %s; give those of each",
          contents.size(),
          request.getMatricesCount());
    }
    Upload upload = new Upload(channel, contents);
    upload.begin(
        request.getRequestId().isEmpty()
            ? request.toBuilder().setRequestId(id(request, contents)).build()
            : request);
    for (int matrix = 0; matrix < contents.size(); matrix++) {
      upload.send(matrix);
    }
    FinishUploadRequest finish =
        FinishUploadRequest.newBuilder().setUpload(upload.begun.getUpload()).build();
    return Calls.await(Calls.unary(channel, DictionaryServiceGrpc.getFinishUploadMethod(), finish))
        .getDictionary();
  }

  private void begin(BeginUploadRequest request) {
    begun =
        Calls.await(Calls.unary(channel, DictionaryServiceGrpc.getBeginUploadMethod(), request));
    if (begun.getReceivedBytesCount() != contents.size() || begun.getMaxChunkBytes() == 0) {
      throw ActserveException.badResponse(
          "the server began an upload of %s matrices, not of %s, in chunks of %s bytes",
          begun.getReceivedBytesCount(), contents.size(), begun.getMaxChunkBytes());
    }
    for (int matrix = 0; matrix < contents.size(); matrix++) {
      long received = begun.getReceivedBytes(matrix);
      if (received < 0 || received > contents.get(matrix).size()) {
        throw ActserveException.badResponse(
            "the server has %s bytes of a matrix of %s",
            Long.toUnsignedString(received), contents.get(matrix).size());
      }
    }
  }

  private void send(int matrix) {
    ByteString content = contents.get(matrix);
    // A matrix has less bytes than an int holds.
    int offset = (int) begun.getReceivedBytes(matrix);
    int most = (int) Math.min(Integer.toUnsignedLong(begun.getMaxChunkBytes()), Integer.MAX_VALUE);
    while (offset < content.size()) {
      int size = Math.min(most, content.size() - offset);
      ByteString chunk = content.substring(offset, offset + size);
      UploadChunkRequest request =
          UploadChunkRequest.newBuilder()
              .setUpload(begun.getUpload())
              .setMatrixIndex(matrix)
              .setOffset(offset)
              .setContent(chunk)
              .setCrc32C(checksum(chunk))
              .build();
      long received =
          Calls.await(Calls.unary(channel, DictionaryServiceGrpc.getUploadChunkMethod(), request))
              .getReceivedBytes();
      if (received <= offset || received > content.size()) {
        throw ActserveException.badResponse(
            "the server has %s bytes of a matrix of %s after a chunk from %s on",
            Long.toUnsignedString(received), content.size(), offset);
      }
      offset = (int) received;
    }
  }

  private static int checksum(ByteString chunk) {
    CRC32C checksum = new CRC32C();
    chunk.asReadOnlyByteBufferList().forEach(checksum::update);
    return (int) checksum.getValue();
  }

  /** An id that follows from what is uploaded. */
  private static String id(BeginUploadRequest request, List<ByteString> contents) {
    MessageDigest digest;
    try {
      digest = MessageDigest.getInstance("SHA-256");
    } catch (NoSuchAlgorithmException missing) {
      throw new AssertionError("every Java has SHA-256", missing);
    }
    digest.update(request.toByteArray());
    for (ByteString content : contents) {
      for (ByteBuffer part : content.asReadOnlyByteBufferList()) {
        digest.update(part);
      }
    }
    return HexFormat.of().formatHex(digest.digest());
  }
}
