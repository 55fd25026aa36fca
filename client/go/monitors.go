package actserve

import (
	"context"
	"crypto/rand"
	"iter"
	"time"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// fitPoll is how often WaitForMonitor looks whether a monitor is fitted.
const fitPoll = time.Second

// CreateMonitor stores a monitor. Its request_id is as that of CreateSteeringVector.
func (c *Client) CreateMonitor(
	ctx context.Context, request *actservev1.CreateMonitorRequest,
) (*actservev1.CreateMonitorResponse, error) {
	if request.GetRequestId() == "" {
		request = clone(request)
		request.RequestId = rand.Text()
	}
	return c.monitors.CreateMonitor(ctx, request)
}

// GetMonitor returns one monitor.
func (c *Client) GetMonitor(
	ctx context.Context, request *actservev1.GetMonitorRequest,
) (*actservev1.GetMonitorResponse, error) {
	return c.monitors.GetMonitor(ctx, request)
}

// ListMonitors yields the monitors of a model, as ListModels does.
func (c *Client) ListMonitors(
	ctx context.Context, request *actservev1.ListMonitorsRequest,
) iter.Seq2[*actservev1.Monitor, error] {
	return pages(request.GetPageToken(), func(token string) ([]*actservev1.Monitor, string, error) {
		page := clone(request)
		page.PageToken = token
		answer, err := c.monitors.ListMonitors(ctx, page)
		return answer.GetMonitors(), answer.GetNextPageToken(), err
	})
}

// UpdateMonitor replaces a monitor, or those of its fields that the mask names.
func (c *Client) UpdateMonitor(
	ctx context.Context, request *actservev1.UpdateMonitorRequest,
) (*actservev1.UpdateMonitorResponse, error) {
	return c.monitors.UpdateMonitor(ctx, request)
}

// DeleteMonitor deletes a monitor. Its alerts stay.
func (c *Client) DeleteMonitor(
	ctx context.Context, request *actservev1.DeleteMonitorRequest,
) (*actservev1.DeleteMonitorResponse, error) {
	return c.monitors.DeleteMonitor(ctx, request)
}

// FitMonitor begins to make a monitor of labelled examples; [Client.WaitForMonitor] waits for it. Its
// request_id is as that of CreateSteeringVector.
func (c *Client) FitMonitor(
	ctx context.Context, request *actservev1.FitMonitorRequest,
) (*actservev1.FitMonitorResponse, error) {
	if request.GetRequestId() == "" {
		request = clone(request)
		request.RequestId = rand.Text()
	}
	return c.monitors.FitMonitor(ctx, request)
}

// WaitForMonitor returns a monitor once FitMonitor has made it, or why it has not. It waits for as long
// as that takes: give ctx a deadline for less. The monitor is paused until it is updated.
func (c *Client) WaitForMonitor(ctx context.Context, name string) (*actservev1.Monitor, error) {
	ticker := time.NewTicker(fitPoll)
	defer ticker.Stop()
	for {
		answer, err := c.GetMonitor(ctx, &actservev1.GetMonitorRequest{Name: name})
		if err != nil {
			return nil, err
		}
		work := answer.GetMonitor().GetFit().GetWork()
		switch work.GetState() {
		case actservev1.WorkState_WORK_STATE_WAITING, actservev1.WorkState_WORK_STATE_RUNNING:
		case actservev1.WorkState_WORK_STATE_FAILED:
			return nil, errorOfWork(work)
		default:
			return answer.GetMonitor(), nil
		}
		select {
		case <-ctx.Done():
			return nil, errorOf(ctx.Err())
		case <-ticker.C:
		}
	}
}

// errorOfWork tells why work has failed.
func errorOfWork(work *actservev1.Work) *Error {
	if work.GetError().GetCode() == 0 {
		return badResponse("failed at its work without saying why")
	}
	return errorOfStatus(work.GetError())
}

// GetMonitorScores tells how the scores of a monitor are distributed, and how far they have drifted.
func (c *Client) GetMonitorScores(
	ctx context.Context, request *actservev1.GetMonitorScoresRequest,
) (*actservev1.GetMonitorScoresResponse, error) {
	return c.monitors.GetMonitorScores(ctx, request)
}

// GetAlert returns one alert as it is now.
func (c *Client) GetAlert(
	ctx context.Context, request *actservev1.GetAlertRequest,
) (*actservev1.GetAlertResponse, error) {
	return c.monitors.GetAlert(ctx, request)
}

// ListAlerts yields alerts, the newest first, as ListModels does.
func (c *Client) ListAlerts(
	ctx context.Context, request *actservev1.ListAlertsRequest,
) iter.Seq2[*actservev1.Alert, error] {
	return pages(request.GetPageToken(), func(token string) ([]*actservev1.Alert, string, error) {
		page := clone(request)
		page.PageToken = token
		answer, err := c.monitors.ListAlerts(ctx, page)
		return answer.GetAlerts(), answer.GetNextPageToken(), err
	})
}

// DecideAlert says whether a sample that is paused goes on or stops.
func (c *Client) DecideAlert(
	ctx context.Context, request *actservev1.DecideAlertRequest,
) (*actservev1.DecideAlertResponse, error) {
	return c.monitors.DecideAlert(ctx, request)
}

// DeleteAlerts deletes alerts, all of the caller's tenant or some.
func (c *Client) DeleteAlerts(
	ctx context.Context, request *actservev1.DeleteAlertsRequest,
) (*actservev1.DeleteAlertsResponse, error) {
	return c.monitors.DeleteAlerts(ctx, request)
}

// checkScores tells whether scores of monitors have what they must: of each token that counts, the score
// as of it, if that was asked for, and nothing of tokens otherwise.
func checkScores(scores []*actservev1.MonitorScore, eachToken bool) error {
	for _, score := range scores {
		count := 0
		if eachToken {
			count = int(score.GetTokens())
		}
		positions := score.GetPositions()
		if len(positions) != count {
			return badResponse("sent %d positions with the score of %s, not %d",
				len(positions), score.GetMonitor(), count)
		}
		for i := 1; i < count; i++ {
			if positions[i] <= positions[i-1] {
				return badResponse("sent positions with the score of %s that do not ascend", score.GetMonitor())
			}
		}
		if score.GetTokenScores() == nil && count == 0 {
			continue
		}
		decoded, err := DecodeTensor(score.GetTokenScores())
		if err != nil {
			return err
		}
		if len(decoded.Shape) != 1 || decoded.Shape[0] != count {
			return badResponse("sent scores of tokens of %s in the shape %v, not [%d]",
				score.GetMonitor(), decoded.Shape, count)
		}
	}
	return nil
}
