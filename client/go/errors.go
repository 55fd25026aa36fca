package actserve

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Reasons of errors that are the client's own. All others are those of
// [github.com/actserve/actserve/client/go/actserve/v1.ErrorReason], without the prefix.
const (
	// ReasonStreamCutShort is of a stream that ended without its last event: what came before it
	// is not whole. The code is Unavailable.
	ReasonStreamCutShort = "STREAM_CUT_SHORT"
	// ReasonBadResponse is of a server that broke the contract, such as by rows that are missing.
	// The code is Internal.
	ReasonBadResponse = "BAD_RESPONSE"
)

// domain is that of every ErrorInfo whose reason is the contract's.
const domain = "actserve.dev"

// Error is why a call was refused or failed. Every error that a client returns is one:
//
//	var failed *actserve.Error
//	if errors.As(err, &failed) && failed.Reason == "LAYER_OUT_OF_RANGE" { ... }
//
// [status.Code] of an Error is its Code. [errors.Is] finds [context.Canceled] and
// [context.DeadlineExceeded] in one whose context ended.
type Error struct {
	// Code is the gRPC code.
	Code codes.Code
	// Reason is a name for programs, such as LAYER_OUT_OF_RANGE; empty if the failure is not the
	// service's own.
	Reason string
	// Message names the value, the limit and the fix.
	Message string
	// Field is the field of the request that is to blame, such as readouts[0].rows.sites[0]; empty
	// if none is.
	Field string
	// Metadata has the values of the message for programs; nil if there are none.
	Metadata map[string]string
	// RetryAfter is the delay after which trying again helps; nil if the server names none.
	RetryAfter *time.Duration
	// RequestID is the server's id for the call, also in its logs; empty if it did not say.
	RequestID string

	cause error
}

// Error returns the message, with the reason and the field.
func (e *Error) Error() string {
	parts := []string{e.Reason}
	if e.Reason == "" {
		parts[0] = e.Code.String()
	}
	if e.Field != "" {
		parts = append(parts, e.Field)
	}
	if item := e.Metadata["item"]; item != "" {
		parts = append(parts, item)
	}
	return fmt.Sprintf("%s (%s)", e.Message, strings.Join(parts, ", "))
}

// GRPCStatus makes package [google.golang.org/grpc/status] see the code and the message.
func (e *Error) GRPCStatus() *status.Status { return status.New(e.Code, e.Message) }

// Unwrap returns the error of the context that ended the call, or of what failed below, if any.
func (e *Error) Unwrap() error { return e.cause }

// invalid is the error of an argument that can never be right, found before anything is sent.
func invalid(reason, field, format string, args ...any) *Error {
	return &Error{
		Code:    codes.InvalidArgument,
		Reason:  reason,
		Field:   field,
		Message: fmt.Sprintf(format, args...),
	}
}

// badResponse is the error of an answer that breaks the contract.
func badResponse(format string, args ...any) *Error {
	return &Error{
		Code:    codes.Internal,
		Reason:  ReasonBadResponse,
		Message: "the server " + fmt.Sprintf(format, args...),
	}
}

func cutShort() *Error {
	return &Error{
		Code:   codes.Unavailable,
		Reason: ReasonStreamCutShort,
		Message: "the stream ended before the server said that it was finished, so the answer may " +
			"be incomplete; try again",
	}
}

// errorOf returns the error of a call that gRPC ended with err, as an *Error.
func errorOf(err error) *Error {
	var known *Error
	if errors.As(err, &known) {
		return known
	}
	told, ok := status.FromError(err)
	if !ok {
		told = status.FromContextError(err)
	}
	failed := errorOfStatus(told.Proto())
	switch failed.Code {
	case codes.Canceled:
		failed.cause = context.Canceled
	case codes.DeadlineExceeded:
		failed.cause = context.DeadlineExceeded
	default:
		failed.cause = err
	}
	switch {
	case failed.Code != codes.Unavailable:
	case strings.Contains(failed.Message, "while dialing"):
		failed.Message += "; check that a server runs there"
	case failed.Message == "no children to pick from": // What gRPC says of a name that it cannot resolve.
		failed.Message = "no server was found by the name of the target; check the name"
	}
	return failed
}

// errorOfStatus returns the error of a status, with what its details say.
func errorOfStatus(told *statuspb.Status) *Error {
	failed := &Error{Code: codes.Unknown, Message: told.GetMessage()}
	if _, ok := code.Code_name[told.GetCode()]; ok {
		failed.Code = codes.Code(told.GetCode())
	}
	for _, packed := range told.GetDetails() {
		detail, err := packed.UnmarshalNew()
		if err != nil {
			continue // What cannot be read is no reason to hide the status.
		}
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == domain {
				failed.Reason, failed.Metadata = detail.GetReason(), detail.GetMetadata()
			}
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				if violation.GetField() == "" {
					continue
				}
				failed.Field = violation.GetField()
				if violation.GetDescription() != "" {
					failed.Message = violation.GetDescription()
				}
				break
			}
		case *errdetails.RetryInfo:
			delay := max(detail.GetRetryDelay().AsDuration(), 0)
			failed.RetryAfter = &delay
		case *errdetails.RequestInfo:
			failed.RequestID = detail.GetRequestId()
		}
	}
	if failed.Message == "" {
		failed.Message = "the server did not say why"
	}
	return failed
}
