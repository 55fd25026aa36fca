package actserve

import (
	"context"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// pauses are what a call waits for at most before it is made again: four attempts in all. Each
// pause is random, so that clients do not come back together.
var pauses = [...]time.Duration{250 * time.Millisecond, 750 * time.Millisecond, 2250 * time.Millisecond}

// maxRetryAfter is the longest delay of a server that a call waits for without a word.
const maxRetryAfter = 30 * time.Second

const modelHeader = "x-actserve-model"

// calls is what every call of a client goes through, those of raw stubs too: its interceptors give
// a call its headers and deadline, make it again, and name its errors.
type calls struct {
	headers metadata.MD
	model   string // As the header has it; empty for none.
	timeout time.Duration
	warn    func(string)
	warned  atomic.Bool
}

func (c *calls) unary(
	ctx context.Context, method string, request, reply any, conn *grpc.ClientConn,
	invoke grpc.UnaryInvoker, options ...grpc.CallOption,
) error {
	ctx, cancel := c.prepare(ctx, method)
	defer cancel()
	var trailer metadata.MD
	options = append(slices.Clip(options), grpc.Trailer(&trailer))
	for attempt := 0; ; attempt++ {
		err := invoke(ctx, method, request, reply, conn, options...)
		c.checkVersion(trailer)
		if err == nil {
			return nil
		}
		if failed := pause(ctx, method, attempt, errorOf(err)); failed != nil {
			return failed
		}
	}
}

func (c *calls) stream(
	ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string,
	open grpc.Streamer, options ...grpc.CallOption,
) (grpc.ClientStream, error) {
	ctx, cancel := c.prepare(ctx, method)
	s := &stream{calls: c, ctx: ctx, cancel: cancel, desc: desc, method: method}
	s.open = func() (err error) {
		s.ClientStream, err = open(ctx, desc, conn, method, options...)
		return err
	}
	for {
		err := s.open()
		if err == nil {
			return s, nil
		}
		if failed := s.pause(err); failed != nil {
			cancel()
			return nil, failed
		}
	}
}

// stream is a stream that is opened again if it breaks off before its first message.
type stream struct {
	grpc.ClientStream // The newest attempt.

	calls    *calls
	ctx      context.Context
	cancel   context.CancelFunc
	desc     *grpc.StreamDesc
	method   string
	open     func() error
	request  any
	attempt  int
	answered bool
}

func (s *stream) SendMsg(message any) error {
	s.request = message
	err := s.ClientStream.SendMsg(message)
	if err == nil || err == io.EOF { // At its end RecvMsg says why.
		return err
	}
	s.cancel()
	return errorOf(err)
}

func (s *stream) RecvMsg(message any) error {
	err := s.receive(message)
	for err != nil && err != io.EOF && !s.answered && !s.desc.ClientStreams {
		if failed := s.pause(err); failed != nil {
			err = failed
			break
		}
		if err = s.sendAgain(); err == nil {
			err = s.receive(message)
		}
	}
	s.answered = true
	if err == nil && s.desc.ServerStreams {
		return nil
	}
	s.cancel() // It is over: this frees the timer of the deadline.
	if err == nil || err == io.EOF {
		return err
	}
	return errorOf(err)
}

func (s *stream) sendAgain() error {
	if err := s.open(); err != nil {
		return err
	}
	if err := s.ClientStream.SendMsg(s.request); err != nil && err != io.EOF {
		return err
	}
	return s.CloseSend()
}

func (s *stream) pause(err error) *Error {
	s.attempt++
	return pause(s.ctx, s.method, s.attempt-1, errorOf(err))
}

func (s *stream) receive(message any) error {
	err := s.ClientStream.RecvMsg(message)
	if err != nil {
		s.calls.checkVersion(s.Trailer())
	}
	return err
}

// prepare gives a call its deadline and its headers. Those that its context has already stay.
func (c *calls) prepare(ctx context.Context, method string) (context.Context, context.CancelFunc) {
	headers, _ := metadata.FromOutgoingContext(ctx) // A copy.
	if headers == nil {
		headers = metadata.MD{}
	}
	otel.GetTextMapPropagator().Inject(ctx, carrier(headers))
	for key, values := range c.headers {
		if len(headers.Get(key)) == 0 {
			headers[key] = values
		}
	}
	if c.model != "" && len(headers.Get(modelHeader)) == 0 &&
		method != actservev1.ModelService_ListModels_FullMethodName {
		headers.Set(modelHeader, c.model)
	}
	ctx = metadata.NewOutgoingContext(ctx, headers)
	if method == actservev1.MonitorService_WatchAlerts_FullMethodName {
		return context.WithCancel(ctx) // It is to last.
	}
	return c.withDeadline(ctx)
}

func (c *calls) withDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); !ok && c.timeout > 0 {
		return context.WithTimeout(ctx, c.timeout)
	}
	return context.WithCancel(ctx)
}

func (c *calls) checkVersion(trailer metadata.MD) {
	for _, version := range trailer.Get(versionHeader) {
		if warning := outdated(version); warning != "" && c.warned.CompareAndSwap(false, true) {
			c.warn(warning)
		}
	}
}

// pause waits before a call that failed is made again. It returns the error of the call if that
// must not be.
func pause(ctx context.Context, method string, attempt int, failed *Error) *Error {
	if failed.Code != codes.Unavailable || attempt >= len(pauses) || !harmless(method) {
		return failed
	}
	delay := rand.N(pauses[attempt])
	if told := failed.RetryAfter; told != nil {
		if *told > maxRetryAfter {
			return failed
		}
		delay += *told
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= delay {
		return failed
	}
	return sleep(ctx, delay)
}

// sleep waits. It returns an error if ctx ends before.
func sleep(ctx context.Context, delay time.Duration) *Error {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return errorOf(ctx.Err())
	case <-timer.C:
		return nil
	}
}

// harmless tells whether the contract says that a call may be made twice.
func harmless(method string) bool {
	name := protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", "."))
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
	if err != nil {
		return false
	}
	options, ok := found.Options().(*descriptorpb.MethodOptions)
	return ok && options.GetIdempotencyLevel() != descriptorpb.MethodOptions_IDEMPOTENCY_UNKNOWN
}

// carrier lets OpenTelemetry write the current trace context into headers.
type carrier metadata.MD

func (c carrier) Get(key string) string {
	if values := metadata.MD(c).Get(key); len(values) > 0 {
		return values[0]
	}
	return ""
}

func (c carrier) Set(key, value string) { metadata.MD(c).Set(key, value) }

func (c carrier) Keys() []string {
	keys := make([]string, 0, len(c))
	for key := range c {
		keys = append(keys, key)
	}
	return keys
}
