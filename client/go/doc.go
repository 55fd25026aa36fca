// Package actserve is a client of actserve, a gRPC service that fetches activations of language
// models, steers them while they write, and puts activations into words.
//
// A [Client] has a method for each method of the contract that is served. They take the messages of
// package [github.com/actserve/actserve/client/go/actserve/v1], actservev1, whose comments say what
// each field means; functions such as [TextPrompt], [RowReadout] and [AddVector] make the ones that
// are clumsy to write.
//
//   - A method that answers with a stream comes twice: [Client.FetchActivations] collects the whole
//     answer, or returns an error; [Client.FetchActivationsStream] yields events as they arrive.
//   - A list, such as [Client.ListModels], asks for pages as they are needed.
//   - Activations are float32, whatever they travel as: see [Tensor] and [Rows].
//   - Every error is an [*Error], with a gRPC code and a reason.
//   - A call ends with its context. One whose context has no deadline has that of the client.
//   - A call that the contract marks harmless is made again, four times in all, while the server is
//     unavailable and has not answered yet. [Client.RunSweep] also goes on where its connection was
//     lost.
//   - Services without methods here are called by their stubs, with [Client.Conn].
//   - The trace of the context goes along as the global propagator of OpenTelemetry writes it, if
//     the program has set one.
//
// # Versions
//
// The module is a folder of the repository, so the tag of a version is client/go/v0.1.0. Before 1.0
// a minor version may change names of this package.
package actserve
