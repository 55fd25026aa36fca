package actserve

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"
)

const (
	// Pauses of a call that is to last double from the first up to the slowest: late enough to be no
	// load for a server that is gone, soon enough for an alert.
	firstReconnect   = 250 * time.Millisecond
	slowestReconnect = 15 * time.Second
	// goodConnection is for how long a connection holds that was a good one.
	goodConnection = 10 * time.Second
)

// reconnects paces the attempts of a call that is to last. Once there was a connection, a server that is
// gone is looked for as long as it takes.
type reconnects struct {
	warn      func(string)
	connected time.Time // When the newest connection began; zero before the first.
	gone      time.Time // Since when there is none; zero while there is one.
	failures  int       // Since a connection was a good one.
	told      bool      // Whether it was said that the server is gone.
}

// opened notes that a connection has begun.
func (r *reconnects) opened() {
	r.connected = time.Now()
	if r.told {
		gone := r.connected.Sub(r.gone).Round(time.Millisecond)
		r.warn(fmt.Sprintf("connected again after %v; the watch goes on where it was", gone))
	}
	r.gone, r.told = time.Time{}, false
}

// good notes that something has come by the connection.
func (r *reconnects) good() { r.failures = 0 }

// pause waits before the server is looked for again. It returns the error that ends the call, if one does.
func (r *reconnects) pause(ctx context.Context, failed *Error) *Error {
	// Before its first connection the call was made again already.
	if failed.Code != codes.Unavailable || r.connected.IsZero() {
		return failed
	}
	lookedFor := !r.gone.IsZero()
	if !lookedFor {
		r.gone = time.Now()
		if r.gone.Sub(r.connected) > goodConnection {
			r.failures = 0
		}
	}
	delay := rand.N(r.longest())
	if told := failed.RetryAfter; told != nil {
		delay += min(max(*told, 0), maxRetryAfter)
	}
	r.failures++
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= delay {
		return failed
	}
	if lookedFor && !r.told {
		r.warn(fmt.Sprintf("the watch has no server, and looks for it: %v", failed))
		r.told = true
	}
	return sleep(ctx, delay)
}

// longest is how long the next pause is at most.
func (r *reconnects) longest() time.Duration {
	return min(firstReconnect<<min(r.failures, 16), slowestReconnect)
}
