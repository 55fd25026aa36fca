package actserve

import (
	"fmt"
	"slices"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// capture is what the readouts of one call read, of any of its sequences.
type capture struct {
	asked   []*actservev1.Readout
	started []*actservev1.ReadoutStarted
}

// check tells whether the server announced what was asked for.
func (c *capture) check() error {
	if len(c.started) != len(c.asked) {
		return badResponse("announced %d readouts, but %d were asked for", len(c.started), len(c.asked))
	}
	for i, readout := range c.asked {
		sites, widths := len(readout.GetRows().GetSites()), len(c.started[i].GetWidths())
		if readout.GetRows() != nil && widths != sites {
			return badResponse("announced the width of %d sites of readout %d, but %d were asked for",
				widths, i, sites)
		}
	}
	return nil
}

// checkReadouts refuses what would hide another where results are found by name and site.
func checkReadouts(readouts []*actservev1.Readout) error {
	names := map[string]int{}
	for i, readout := range readouts {
		if before, ok := names[readout.GetName()]; ok {
			return invalid("FIELD_INVALID", fmt.Sprintf("readouts[%d].name", i),
				"readouts %d and %d are both called %q; give each a name of its own",
				before, i, readout.GetName())
		}
		names[readout.GetName()] = i
		kind, sites := sitesOf(readout)
		seen := map[string]bool{}
		for j, site := range siteNames(sites) {
			if seen[site] {
				return invalid("SITE_INVALID", fmt.Sprintf("readouts[%d].%s.sites[%d]", i, kind, j),
					"readout %q names %s twice; name it once", readout.GetName(), site)
			}
			seen[site] = true
		}
	}
	return nil
}

// sitesOf returns the sites of a readout, and the field of its kind; none of a kind without sites.
func sitesOf(readout *actservev1.Readout) (kind string, sites []*actservev1.Site) {
	switch {
	case readout.GetRows() != nil:
		return "rows", readout.GetRows().GetSites()
	case readout.GetPredictions() != nil:
		return "predictions", readout.GetPredictions().GetSites()
	case readout.GetKeep() != nil:
		return "keep", readout.GetKeep().GetSites()
	case readout.GetLogitAttribution() != nil:
		return "logit_attribution", readout.GetLogitAttribution().GetSites()
	}
	return "", nil
}

// sequence collects what arrives of one item or sample.
type sequence struct {
	index   uint32
	capture *capture
	readers []reader // By readout; nil for one that does not read this sequence.
}

// reader collects what arrives of one readout of one sequence.
type reader interface {
	// add takes one chunk.
	add(chunk any) error
	// finish fills in what was read, if it is all that was promised: rows at these positions of a
	// sequence of which so many tokens were run.
	finish(promised []uint32, run int, into *Readout) error
}

// newSequence makes one that these readouts read, by index; all if there are none.
func (c *capture) newSequence(index uint32, readouts []uint32) (*sequence, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	s := &sequence{index: index, capture: c, readers: make([]reader, len(c.asked))}
	for i, readout := range c.asked {
		if len(readouts) > 0 && !slices.Contains(readouts, uint32(i)) {
			continue
		}
		var err error
		if s.readers[i], err = newReader(readout, c.started[i]); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func newReader(asked *actservev1.Readout, started *actservev1.ReadoutStarted) (reader, error) {
	switch {
	case asked.GetRows().GetStatistics() != nil:
		return &nothingSent{}, nil
	case asked.GetRows() != nil:
		return newRowsReader(asked.GetRows(), started), nil
	case asked.GetPredictions() != nil:
		return newPredictionsReader(asked.GetPredictions()), nil
	case asked.GetAttention() != nil:
		return newAttentionReader(asked.GetAttention()), nil
	case asked.GetAttentionSummary() != nil:
		return newSummaryReader(asked.GetAttentionSummary(), started)
	case asked.GetLogitAttribution() != nil:
		return newAttributionReader(asked.GetLogitAttribution(), started)
	default:
		return &nothingSent{}, nil
	}
}

// nothingSent is of readouts of which nothing travels: what is kept, and rows of which only
// statistics are sent.
type nothingSent struct{}

func (*nothingSent) add(any) error                        { return unasked }
func (*nothingSent) finish([]uint32, int, *Readout) error { return nil }

// unasked is the error of a chunk that is not of the kind that its readout asks for.
var unasked = badResponse("sent something that its readout does not ask for")

// chunkEvent is an event that may hold a chunk of a readout.
type chunkEvent interface {
	GetActivations() *actservev1.ActivationChunk
	GetPredictions() *actservev1.PredictionChunk
	GetAttention() *actservev1.AttentionChunk
	GetAttentionSummary() *actservev1.AttentionSummaryChunk
	GetLogitAttribution() *actservev1.LogitAttributionChunk
}

type chunk interface {
	GetSequenceIndex() uint32
	GetReadoutIndex() uint32
}

// chunkOf returns the chunk of an event; nil if it holds none.
func chunkOf(event chunkEvent) chunk {
	if chunk := event.GetActivations(); chunk != nil {
		return chunk
	}
	if chunk := event.GetPredictions(); chunk != nil {
		return chunk
	}
	if chunk := event.GetAttention(); chunk != nil {
		return chunk
	}
	if chunk := event.GetAttentionSummary(); chunk != nil {
		return chunk
	}
	if chunk := event.GetLogitAttribution(); chunk != nil {
		return chunk
	}
	return nil
}

func (s *sequence) add(chunk chunk) error {
	index := chunk.GetReadoutIndex()
	if int64(index) >= int64(len(s.readers)) || s.readers[index] == nil {
		return badResponse("sent something of readout %d of sequence %d, which was not asked for",
			index, s.index)
	}
	return s.readers[index].add(chunk)
}

// finish returns what every readout has read, by name, if all of it is there.
func (s *sequence) finish(
	positions []*actservev1.ReadoutPositions, kept []*actservev1.KeptReadout, run int,
) (Readouts, error) {
	promised, err := s.promised(positions, run)
	if err != nil {
		return nil, err
	}
	names, err := s.keptNames(kept)
	if err != nil {
		return nil, err
	}
	found := Readouts{}
	for i, reader := range s.readers {
		if reader == nil {
			continue
		}
		asked := s.capture.asked[i]
		if asked.GetRows().GetStatistics() != nil {
			continue
		}
		into := found[asked.GetName()]
		where, told := promised[uint32(i)]
		if !told {
			return nil, badResponse("did not say where readout %d has read sequence %d", i, s.index)
		}
		if err := reader.finish(where, run, &into); err != nil {
			return nil, err
		}
		if asked.GetKeep() != nil {
			name, ok := names[uint32(i)]
			if ok != (len(where) > 0) {
				return nil, badResponse("kept rows of sequence %d at %d positions, but told %d names of them",
					s.index, len(where), len(names))
			}
			into.Kept = name
		}
		found[asked.GetName()] = into
	}
	return found, nil
}

// promised returns the positions that the server announced, by readout.
func (s *sequence) promised(
	announced []*actservev1.ReadoutPositions, run int,
) (map[uint32][]uint32, error) {
	promised := map[uint32][]uint32{}
	for _, each := range announced {
		if where := each.GetPositions(); !ascending(where) ||
			len(where) > 0 && int64(where[len(where)-1]) >= int64(run) {
			return nil, badResponse("announced positions that the %d tokens of sequence %d do not have in "+
				"this order", run, s.index)
		}
		for _, index := range each.GetReadoutIndices() {
			_, twice := promised[index]
			if twice || int64(index) >= int64(len(s.readers)) || s.readers[index] == nil {
				return nil, badResponse("announced positions of readout %d of sequence %d twice or unasked",
					index, s.index)
			}
			promised[index] = each.GetPositions()
		}
	}
	return promised, nil
}

// keptNames returns the names of what was kept, by readout.
func (s *sequence) keptNames(told []*actservev1.KeptReadout) (map[uint32]string, error) {
	names := map[uint32]string{}
	for _, each := range told {
		index := each.GetReadoutIndex()
		_, twice := names[index]
		if twice || each.GetName() == "" || each.GetSequenceIndex() != s.index ||
			int64(index) >= int64(len(s.readers)) || s.readers[index] == nil ||
			s.capture.asked[index].GetKeep() == nil {
			return nil, badResponse("kept rows of sequence %d by readout %d twice or unasked", s.index, index)
		}
		names[index] = each.GetName()
	}
	return names, nil
}

func ascending(positions []uint32) bool {
	for i := 1; i < len(positions); i++ {
		if positions[i] <= positions[i-1] {
			return false
		}
	}
	return true
}

// checkReports tells whether there is a report on each intervention.
func checkReports(reports []*actservev1.InterventionReport, asked int) error {
	if len(reports) != asked {
		return badResponse("reported on %d interventions, not the %d that were asked for",
			len(reports), asked)
	}
	return nil
}

// checkPrompt tells whether a prompt says of every token what it must.
func checkPrompt(prompt *actservev1.TokenizedPrompt, idsOnly bool) error {
	ids, texts, sources := len(prompt.GetIds()), len(prompt.GetTexts()), len(prompt.GetSources())
	if texts != ids && !(idsOnly && texts == 0) || sources != ids && sources != 0 {
		return badResponse("sent %d texts and %d sources of a prompt of %d tokens", texts, sources, ids)
	}
	return nil
}
