package dev.actserve;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.function.Consumer;

/** Calls whose whole answer is a future. */
final class Calls {
  private Calls() {}

  /** Makes a call with one response. */
  static <Q, R> CompletableFuture<R> unary(
      Channel channel, MethodDescriptor<Q, R> method, Q request) {
    return collect(channel, method, request, new Only<>(response -> {}));
  }

  /**
   * The only response.
   *
   * @param check throws what is wrong with it
   */
  static final class Only<R> implements Collector<R, R> {
    private final Consumer<R> check;
    private R only;

    Only(Consumer<R> check) {
      this.check = check;
    }

    @Override
    public void read(R response) {
      if (only != null) {
        throw ActserveException.badResponse("the server sent two responses");
      }
      check.accept(response);
      only = response;
    }

    @Override
    public R result() {
      if (only == null) {
        throw ActserveException.badResponse("the server sent no response");
      }
      return only;
    }
  }

  /** Makes a call and puts its responses together. Whoever ends the future cancels the call. */
  static <Q, R, T> CompletableFuture<T> collect(
      Channel channel, MethodDescriptor<Q, R> method, Q request, Collector<R, T> collector) {
    return collect(channel, method, request, collector, CallOptions.DEFAULT);
  }

  /** Makes a call with options. */
  static <Q, R, T> CompletableFuture<T> collect(
      Channel channel,
      MethodDescriptor<Q, R> method,
      Q request,
      Collector<R, T> collector,
      CallOptions options) {
    try {
      collector.checkRequest();
    } catch (ActserveException refused) {
      return CompletableFuture.failedFuture(refused);
    }
    ClientCall<Q, R> call = channel.newCall(method, options);
    CompletableFuture<T> future = new CompletableFuture<>();
    call.start(
        new ClientCall.Listener<R>() {
          private ActserveException broken;

          @Override
          public void onMessage(R response) {
            if (broken == null) {
              try {
                collector.read(response);
              } catch (ActserveException error) {
                broken = error;
                call.cancel("the answer breaks the contract", error);
              }
            }
          }

          @Override
          public void onClose(Status status, Metadata trailers) {
            if (broken == null && !status.isOk()) {
              broken = ActserveException.of(status, trailers, null);
            }
            if (broken != null) {
              future.completeExceptionally(broken);
              return;
            }
            try {
              future.complete(collector.result());
            } catch (RuntimeException | OutOfMemoryError error) {
              // Rows may need more memory than there is; whoever waits has to know.
              future.completeExceptionally(error);
            }
          }
        },
        new Metadata());
    // All of it is collected, so the server is never to wait.
    call.request(Integer.MAX_VALUE);
    call.sendMessage(request);
    call.halfClose();
    // Last, since a call that was cancelled takes no message.
    future.whenComplete(
        // A call that has ended takes no notice.
        (result, error) -> call.cancel("the future was cancelled or completed", null));
    return future;
  }

  /** The result of a future; a thread that is interrupted cancels its call. */
  static <T> T await(CompletableFuture<T> future) {
    try {
      return future.get();
    } catch (InterruptedException interrupted) {
      future.cancel(true);
      Thread.currentThread().interrupt();
      throw ActserveException.cancelled(interrupted);
    } catch (ExecutionException failed) {
      throw ActserveException.from(failed.getCause()).here();
    }
  }
}
