package actserve

import (
	"context"
	"strings"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// GenerateResult is all that a Generate call wrote and read.
type GenerateResult struct {
	// CallID is the server's id for the call, also in its logs.
	CallID string
	// Prompt is the prompt as the model saw it.
	Prompt *actservev1.TokenizedPrompt
	// Samples are as many as the request asks for.
	Samples []*Sample
	// Usage is what the call consumed.
	Usage *actservev1.Usage
}

// Sample is what was written from the prompt, and read of it.
type Sample struct {
	// Text is what was written.
	Text string
	// TokenIDs are those that were generated; the first is at the position after the prompt.
	TokenIDs []uint32
	// TokenTexts are these tokens, each decoded alone.
	TokenTexts []string
	// Logprobs are those of these tokens; empty unless SamplingParams.logprobs is set.
	Logprobs []*actservev1.TokenLogprobs
	// FinishReason is why it ended.
	FinishReason actservev1.FinishReason
	// EndTokenID is the token that ended it; nil if none did.
	EndTokenID *uint32
	// StopString is the text of SamplingParams.stop that ended it; empty if none did.
	StopString string
	// Monitor is the name of the monitor that ended it; empty if none did.
	Monitor string
	// Alerts are those that monitors have the call told of, as they were raised.
	Alerts []*actservev1.Alert
	// MonitorScores are of the monitors that watched it, as the request asks. [DecodeTensor] reads the
	// scores as of each token.
	MonitorScores []*actservev1.MonitorScore
	// MonitorInterventions are what monitors changed, an entry for each level that came to intervene, in
	// the order in which they began to.
	MonitorInterventions []*actservev1.MonitorInterventions
	// Readouts are by name.
	Readouts Readouts
	// Interventions are what each intervention did, in the order of the request.
	Interventions []*actservev1.InterventionReport
}

// Generate writes samples from a prompt, and returns them with what was read. It is all there, or an
// error. Results are found by the names of readouts, so give each one.
func (c *Client) Generate(
	ctx context.Context, request *actservev1.GenerateRequest,
) (*GenerateResult, error) {
	if err := checkReadouts(request.GetReadouts()); err != nil {
		return nil, err
	}
	call := &generateCall{request: request, result: &GenerateResult{}}
	for event, err := range c.GenerateStream(ctx, request) {
		if err == nil {
			err = call.read(event)
		}
		if err != nil {
			return nil, err
		}
	}
	return call.result, nil
}

// generateCall collects the events of a call.
type generateCall struct {
	request  *actservev1.GenerateRequest
	result   *GenerateResult
	open     []*openSample // Nil before `started`; an entry is nil once it is closed.
	finished bool
}

type openSample struct {
	Sample
	text     strings.Builder
	sequence *sequence
}

func (c *generateCall) read(event *actservev1.GenerateResponse) error {
	if event.GetEvent() == nil {
		return nil // Of a newer server; the contract says to skip it.
	}
	if started := event.GetStarted(); started != nil {
		return c.start(started)
	}
	if c.open == nil || c.finished {
		return badResponse("sent an event before the call was started or after it was finished")
	}
	switch {
	case event.GetTokens() != nil:
		return c.addTokens(event.GetTokens())
	case event.GetAlert() != nil:
		sample, err := c.sample(event.GetAlert().GetSampleIndex())
		if err == nil {
			sample.Alerts = append(sample.Alerts, event.GetAlert())
		}
		return err
	case event.GetSampleFinished() != nil:
		return c.closeSample(event.GetSampleFinished())
	case event.GetFinished() != nil:
		return c.finish(event.GetFinished())
	}
	chunk := chunkOf(event)
	if chunk == nil {
		return nil
	}
	sample, err := c.sample(chunk.GetSequenceIndex())
	if err != nil {
		return err
	}
	return sample.sequence.add(chunk)
}

func (c *generateCall) start(started *actservev1.GenerateStarted) error {
	if c.open != nil {
		return badResponse("started the call twice")
	}
	if started.GetPrompt() == nil {
		return badResponse("did not tell the prompt")
	}
	if err := checkPrompt(started.GetPrompt(), false); err != nil {
		return err
	}
	capture := &capture{c.request.GetReadouts(), started.GetReadouts()}
	c.result.CallID, c.result.Prompt = started.GetCallId(), started.GetPrompt()
	count := uint32(1)
	if sampling := c.request.GetSampling(); sampling != nil && sampling.Samples != nil {
		count = sampling.GetSamples()
	}
	c.open = []*openSample{}
	for index := range count {
		sequence, err := capture.newSequence(index, nil)
		if err != nil {
			return err
		}
		c.open = append(c.open, &openSample{sequence: sequence})
	}
	c.result.Samples = make([]*Sample, len(c.open))
	return nil
}

func (c *generateCall) sample(index uint32) (*openSample, error) {
	if int64(index) >= int64(len(c.open)) || c.open[index] == nil {
		return nil, badResponse("sent something of sample %d, which is not open", index)
	}
	return c.open[index], nil
}

func (c *generateCall) addTokens(chunk *actservev1.TokenChunk) error {
	sample, err := c.sample(chunk.GetSampleIndex())
	if err != nil {
		return err
	}
	count := len(chunk.GetIds())
	next := len(c.result.Prompt.GetIds()) + len(sample.TokenIDs)
	if int64(chunk.GetPosition()) != int64(next) || len(chunk.GetTexts()) != count {
		return badResponse("sent %d token ids and %d texts at position %d, but position %d comes next",
			count, len(chunk.GetTexts()), chunk.GetPosition(), next)
	}
	if sampling := c.request.GetSampling(); sampling != nil && sampling.Logprobs != nil &&
		len(chunk.GetLogprobs()) != count {
		return badResponse("sent log probabilities of %d of %d tokens", len(chunk.GetLogprobs()), count)
	}
	sample.text.WriteString(chunk.GetText())
	sample.TokenIDs = append(sample.TokenIDs, chunk.GetIds()...)
	sample.TokenTexts = append(sample.TokenTexts, chunk.GetTexts()...)
	sample.Logprobs = append(sample.Logprobs, chunk.GetLogprobs()...)
	return nil
}

func (c *generateCall) closeSample(closed *actservev1.SampleFinished) error {
	sample, err := c.sample(closed.GetSampleIndex())
	if err != nil {
		return err
	}
	c.open[closed.GetSampleIndex()] = nil
	// The last generated token is never run.
	prompt := len(c.result.Prompt.GetIds())
	run := max(prompt, prompt+len(sample.TokenIDs)-1)
	sample.Readouts, err = sample.sequence.finish(closed.GetPositions(), closed.GetKept(), run)
	if err != nil {
		return err
	}
	sample.Text = sample.text.String()
	sample.FinishReason = closed.GetReason()
	sample.StopString = closed.GetStopString()
	sample.Monitor = closed.GetMonitor()
	sample.MonitorScores = closed.GetMonitorScores()
	sample.MonitorInterventions = closed.GetMonitorInterventions()
	if err := c.checkScores(sample.MonitorScores); err != nil {
		return err
	}
	if end, ok := closed.GetStoppedBy().(*actservev1.SampleFinished_EndTokenId); ok {
		sample.EndTokenID = &end.EndTokenId
	}
	sample.Interventions = closed.GetInterventions()
	written := sample.Sample // A copy, so that what arrived can be freed.
	c.result.Samples[closed.GetSampleIndex()] = &written
	return checkReports(closed.GetInterventions(), len(c.request.GetInterventions()))
}

// checkScores tells whether scores were asked for, and are there of every monitor that the request names.
func (c *generateCall) checkScores(scores []*actservev1.MonitorScore) error {
	detail := c.request.GetScoreDetail()
	asked := detail != actservev1.ScoreDetail_SCORE_DETAIL_UNSPECIFIED
	scored := map[string]bool{}
	for _, score := range scores {
		if !asked || scored[score.GetMonitor()] {
			return badResponse("sent a score of %s twice or unasked", score.GetMonitor())
		}
		scored[score.GetMonitor()] = true
	}
	for _, monitor := range c.request.GetMonitors() {
		if asked && !scored[monitor] {
			return badResponse("sent no score of %s", monitor)
		}
	}
	return checkScores(scores, detail == actservev1.ScoreDetail_SCORE_DETAIL_TOKEN)
}

func (c *generateCall) finish(finished *actservev1.GenerateFinished) error {
	for index, sample := range c.open {
		if sample != nil {
			return badResponse("finished without closing sample %d", index)
		}
	}
	c.finished = true
	c.result.Usage = finished.GetUsage()
	return nil
}
