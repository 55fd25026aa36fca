package dev.actserve;

/** Puts the responses of one call together. */
interface Collector<R, T> {
  /** Throws what is wrong with the request, before it is sent. */
  default void checkRequest() {}

  /** Takes the next response. */
  void read(R response);

  /** What they are together, once the stream has ended well. */
  T result();
}
