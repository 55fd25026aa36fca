// Package actservev1 has the messages and stubs of the contract, generated from proto/actserve/v1 of
// the repository, those of services that are declared and not served yet too. Package
// [github.com/actserve/actserve/client/go] is the client to call them with.
package actservev1
