/**
 * The client of actserve: fetch activations, steer, and explain language models over gRPC.
 *
 * <p>Begin at {@link dev.actserve.ActserveClient}. Requests and events are the generated messages
 * of the contract, in {@code dev.actserve.v1}; {@link dev.actserve.Sites}, {@link
 * dev.actserve.Positions}, {@link dev.actserve.Prompts}, {@link dev.actserve.Tensors}, {@link
 * dev.actserve.Readouts}, {@link dev.actserve.Interventions}, {@link dev.actserve.Vectors} and
 * {@link dev.actserve.Probes} make the clumsy ones of them short. Whatever fails is an {@link
 * dev.actserve.ActserveException}.
 */
package dev.actserve;
