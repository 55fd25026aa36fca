package actserve

import (
	"context"
	"io"
	"iter"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// WatchedAlert is an alert as [Client.WatchAlerts] tells it.
type WatchedAlert struct {
	*actservev1.Alert
	// LostBefore is how many alerts, of whatever monitor, are gone between the one before and this one:
	// the reader came too late for them.
	LostBefore uint64
}

// WatchAlerts yields alerts of all calls of the caller's tenant as they are raised. Where the connection
// is lost it goes on after the last alert that came, however long the server is gone, such as while it
// starts again; [Config.Warn] is told when it is gone and when it is back. An error that no other
// connection mends, and a first connection that cannot be made, is the last thing that is yielded; a
// request with the resume_token of the last alert goes on later. It has no deadline but that of ctx, and
// ends with the loop or ctx.
func (c *Client) WatchAlerts(
	ctx context.Context, request *actservev1.WatchAlertsRequest,
) iter.Seq2[*WatchedAlert, error] {
	return func(yield func(*WatchedAlert, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // Leaving the loop cancels the call.
		asked := clone(request)
		attempts := &reconnects{warn: c.calls.warn}
		for {
			left, err := c.watch(ctx, asked, attempts, yield)
			if left {
				return
			}
			if failed := attempts.pause(ctx, errorOf(err)); failed != nil {
				yield(nil, failed)
				return
			}
		}
	}
}

// watch reads one attempt, and moves the request on with each alert. It tells whether the caller has left,
// and why the attempt has ended.
func (c *Client) watch(
	ctx context.Context, asked *actservev1.WatchAlertsRequest, attempts *reconnects,
	yield func(*WatchedAlert, error) bool,
) (left bool, err error) {
	stream, err := c.monitors.WatchAlerts(ctx, asked)
	if err != nil {
		return false, err
	}
	come, lost := false, uint64(0)
	for {
		event, err := stream.Recv()
		if err == io.EOF {
			err = cutShort() // It ends only when the call does.
		}
		if err != nil {
			return false, err
		}
		if !come {
			come = true
			attempts.opened()
		}
		switch {
		case event.GetStarted() != nil:
			asked.ResumeToken, asked.FromOldest = event.GetStarted().GetResumeToken(), false
		case event.GetLost() != nil:
			lost += event.GetLost().GetAlerts()
		case event.GetAlert() != nil:
			alert := event.GetAlert()
			attempts.good()
			asked.ResumeToken, asked.FromOldest = alert.GetResumeToken(), false
			if !yield(&WatchedAlert{Alert: alert, LostBefore: lost}, nil) {
				return true, nil
			}
			lost = 0
		}
	}
}
