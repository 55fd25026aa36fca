package actserve

import (
	"slices"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// statisticsReader collects what arrives about the labels of a call.
type statisticsReader struct {
	capture  *capture
	labels   map[string]bool       // All that the items have.
	expected map[readoutLabel]bool // Those that must come: of rows that were read.
	found    map[labelKey]*labelPieces
}

type readoutLabel struct {
	readout uint32
	label   string
}

type labelKey struct {
	readout, site uint32
	label         string
}

type labelPieces struct {
	rows    uint64
	mean    Tensor
	tensors []*actservev1.Tensor // The rows of a covariance matrix; or one of variances.
	first   uint64               // The row of the matrix that comes next.
}

func newStatisticsReader(capture *capture, items []*actservev1.FetchItem) statisticsReader {
	s := statisticsReader{
		capture:  capture,
		labels:   map[string]bool{},
		expected: map[readoutLabel]bool{},
		found:    map[labelKey]*labelPieces{},
	}
	for _, item := range items {
		if countsWhole(item) {
			s.labels[item.GetLabel()] = true
		}
		for _, some := range item.GetPositionLabels() {
			s.labels[some.GetLabel()] = true
		}
	}
	return s
}

// countsWhole tells whether every row of an item counts towards its label. An item without any
// label counts towards the empty one.
func countsWhole(item *actservev1.FetchItem) bool {
	return item.GetLabel() != "" || len(item.GetPositionLabels()) == 0
}

// expect notes the statistics that must come of an item that was read at these positions.
func (s *statisticsReader) expect(item *actservev1.FetchItem, read []*actservev1.ReadoutPositions) {
	if !countsWhole(item) {
		return
	}
	for _, each := range read {
		for _, readout := range each.GetReadoutIndices() {
			if len(each.GetPositions()) > 0 && s.capture.asked[readout].GetRows().GetStatistics() != nil {
				s.expected[readoutLabel{readout, item.GetLabel()}] = true
			}
		}
	}
}

func (s *statisticsReader) add(sent *actservev1.LabelStatistics) error {
	key := labelKey{sent.GetReadoutIndex(), sent.GetSiteIndex(), sent.GetLabel()}
	width, err := s.width(key)
	if err != nil {
		return err
	}
	if !s.labels[key.label] || sent.GetRows() == 0 {
		return badResponse("sent statistics of %d rows of label %q, or of a label that no item has",
			sent.GetRows(), key.label)
	}
	label := s.found[key]
	if (label == nil) != (sent.GetMean() != nil) || label != nil && label.rows != sent.GetRows() {
		return badResponse("sent the mean of label %q twice, not at all, or of another number of rows",
			key.label)
	}
	if label == nil {
		mean, err := DecodeTensor(sent.GetMean())
		if err != nil {
			return err
		}
		if !slices.Equal(mean.Shape, []int{width}) {
			return badResponse("sent the mean of label %q in shape %v, not [%d]", key.label, mean.Shape, width)
		}
		label = &labelPieces{rows: sent.GetRows(), mean: mean}
		s.found[key] = label
	}
	shape, err := checkedShape(sent.GetSecondMoments())
	if err != nil {
		return err
	}
	fits := slices.Equal(shape, []int{width}) && len(label.tensors) == 0
	if s.isMatrix(key) {
		fits = len(shape) == 2 && shape[1] == width && uint64(sent.GetFirstRow()) == label.first
	}
	if !fits {
		return badResponse("sent second moments of label %q in shape %v from row %d, where row %d comes next",
			key.label, shape, sent.GetFirstRow(), label.first)
	}
	label.first += uint64(shape[0])
	label.tensors = append(label.tensors, sent.GetSecondMoments())
	return nil
}

// width returns that of the rows, if their statistics were asked for.
func (s *statisticsReader) width(key labelKey) (int, error) {
	if err := s.capture.check(); err != nil {
		return 0, err
	}
	if int64(key.readout) < int64(len(s.capture.asked)) {
		rows := s.capture.asked[key.readout].GetRows()
		if rows.GetStatistics() != nil && int64(key.site) < int64(len(rows.GetSites())) {
			return int(s.capture.started[key.readout].GetWidths()[key.site]), nil
		}
	}
	return 0, badResponse("sent statistics of readout %d and site %d unasked", key.readout, key.site)
}

func (s *statisticsReader) isMatrix(key labelKey) bool {
	asked := s.capture.asked[key.readout].GetRows().GetStatistics().GetSecondMoments()
	return asked == actservev1.SecondMoments_SECOND_MOMENTS_FULL
}

func (s *statisticsReader) finish() (map[string]Statistics, error) {
	for key := range s.expected {
		for site := range s.capture.asked[key.readout].GetRows().GetSites() {
			if s.found[labelKey{key.readout, uint32(site), key.label}] == nil {
				return nil, badResponse("sent no statistics of label %q at site %d of readout %d",
					key.label, site, key.readout)
			}
		}
	}
	var all map[string]Statistics
	for key, label := range s.found {
		width := len(label.mean.Data)
		shape := []int{width}
		if s.isMatrix(key) {
			shape = []int{width, width}
		}
		if label.first != uint64(width) {
			return nil, badResponse("sent %d of the %d rows of the second moments of label %q",
				label.first, width, key.label)
		}
		readout := s.capture.asked[key.readout]
		site := SiteName(readout.GetRows().GetSites()[key.site])
		if all == nil {
			all = map[string]Statistics{}
		}
		if all[readout.GetName()] == nil {
			all[readout.GetName()] = Statistics{}
		}
		if all[readout.GetName()][site] == nil {
			all[readout.GetName()][site] = map[string]LabelStatistics{}
		}
		all[readout.GetName()][site][key.label] = LabelStatistics{
			Rows: label.rows, Mean: label.mean, SecondMoments: joined(label.tensors, shape...),
		}
	}
	return all, nil
}
