package actserve

import (
	"slices"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// pieces are the chunks of one site or head, in the order of their arrival. Their bytes were
// checked; they are decoded once, when all are there.
type pieces struct {
	name      string
	positions []uint32
	tensors   []*actservev1.Tensor
}

func piecesOf(names []string) []pieces {
	all := make([]pieces, len(names))
	for i, name := range names {
		all[i].name = name
	}
	return all
}

// add takes one chunk, a tensor with an axis for these positions and then axes of this shape.
func (p *pieces) add(positions []uint32, tensor *actservev1.Tensor, shape ...int) error {
	found, err := checkedShape(tensor)
	if err != nil {
		return err
	}
	if wanted := append([]int{len(positions)}, shape...); !slices.Equal(found, wanted) {
		return badResponse("sent a tensor of %s in shape %v, not %v", p.name, found, wanted)
	}
	p.tensors = append(p.tensors, tensor)
	p.positions = append(p.positions, positions...)
	return nil
}

// check tells whether exactly the promised positions are there.
func (p *pieces) check(promised []uint32) error {
	if !slices.Equal(p.positions, promised) {
		return badResponse("sent %s at %d positions, and not, once and in order, at the %d that it announced",
			p.name, len(p.positions), len(promised))
	}
	return nil
}

func (p *pieces) join(shape ...int) Tensor {
	return joined(p.tensors, append([]int{len(p.positions)}, shape...)...)
}

// at returns the pieces of a site by the index of a chunk.
func at(sites []pieces, index uint32) (*pieces, error) {
	if int64(index) >= int64(len(sites)) {
		return nil, badResponse("sent something of site %d, but %d were asked for", index, len(sites))
	}
	return &sites[index], nil
}

type rowsReader struct {
	asked   *actservev1.RowReadout
	widths  []uint32
	sites   []pieces
	indices [][]uint32 // With send_top: by site.
}

func newRowsReader(asked *actservev1.RowReadout, started *actservev1.ReadoutStarted) reader {
	return &rowsReader{
		asked:   asked,
		widths:  started.GetWidths(),
		sites:   piecesOf(siteNames(asked.GetSites())),
		indices: make([][]uint32, len(asked.GetSites())),
	}
}

func (r *rowsReader) sendsTop() bool {
	projection := r.asked.GetProjection()
	return projection != nil && projection.SendTop != nil
}

func (r *rowsReader) add(sent any) error {
	chunk, ok := sent.(*actservev1.ActivationChunk)
	if !ok {
		return unasked
	}
	site, err := at(r.sites, chunk.GetSiteIndex())
	if err != nil {
		return err
	}
	width := int(r.widths[chunk.GetSiteIndex()])
	if err := site.add(chunk.GetPositions(), chunk.GetRows(), width); err != nil {
		return err
	}
	if r.sendsTop() {
		if len(chunk.GetIndices()) != len(chunk.GetPositions())*width {
			return badResponse("sent %d indices for %d rows of %s, %d wide",
				len(chunk.GetIndices()), len(chunk.GetPositions()), site.name, width)
		}
		all := &r.indices[chunk.GetSiteIndex()]
		*all = append(*all, chunk.GetIndices()...)
	}
	return nil
}

func (r *rowsReader) finish(promised []uint32, _ int, into *Readout) error {
	if r.asked.GetReduction() != actservev1.Reduction_REDUCTION_UNSPECIFIED {
		promised = promised[max(0, len(promised)-1):]
	}
	into.Rows = map[string]Rows{}
	for i := range r.sites {
		site := &r.sites[i]
		if err := site.check(promised); err != nil {
			return err
		}
		into.Rows[site.name] = Rows{
			Tensor:    site.join(int(r.widths[i])),
			Positions: site.positions,
			Indices:   r.indices[i],
		}
	}
	return nil
}

type predictionsReader struct {
	asked *actservev1.PredictionReadout
	sites []predictedSite
}

// predictedSite is what arrives of one site: the pieces that are asked for, each with its positions.
type predictedSite struct {
	top, tokens, next pieces
	positions         []uint32
	ids               []uint32
	texts             []string
}

func newPredictionsReader(asked *actservev1.PredictionReadout) reader {
	names := siteNames(asked.GetSites())
	if len(names) == 0 {
		names = []string{"final_norm"} // As the contract says.
	}
	sites := make([]predictedSite, len(names))
	for i, name := range names {
		sites[i].top.name, sites[i].tokens.name, sites[i].next.name = name, name, name
	}
	return &predictionsReader{asked: asked, sites: sites}
}

func (r *predictionsReader) add(sent any) error {
	chunk, ok := sent.(*actservev1.PredictionChunk)
	if !ok {
		return unasked
	}
	if int64(chunk.GetSiteIndex()) >= int64(len(r.sites)) {
		return badResponse("sent predictions of site %d, but %d were asked for",
			chunk.GetSiteIndex(), len(r.sites))
	}
	site, positions := &r.sites[chunk.GetSiteIndex()], chunk.GetPositions()
	if top := int(r.asked.GetTopK()); top > 0 {
		if err := site.top.add(positions, chunk.GetTopLogprobs(), top); err != nil {
			return err
		}
		if count := len(positions) * top; len(chunk.GetTopIds()) != count ||
			len(chunk.GetTopTexts()) != count {
			return badResponse("sent %d ids and %d texts of tokens of %s, not %d",
				len(chunk.GetTopIds()), len(chunk.GetTopTexts()), site.top.name, count)
		}
		site.ids = append(site.ids, chunk.GetTopIds()...)
		site.texts = append(site.texts, chunk.GetTopTexts()...)
	}
	if tokens := len(r.asked.GetTokenIds()); tokens > 0 {
		if err := site.tokens.add(positions, chunk.GetTokenLogprobs(), tokens); err != nil {
			return err
		}
	}
	if r.asked.GetNextToken() {
		if err := site.next.add(positions, chunk.GetNextTokenLogprobs()); err != nil {
			return err
		}
	}
	site.positions = append(site.positions, positions...)
	return nil
}

func (r *predictionsReader) finish(promised []uint32, _ int, into *Readout) error {
	into.Predictions = map[string]Predictions{}
	for i := range r.sites {
		site := &r.sites[i]
		if err := (&pieces{name: site.top.name, positions: site.positions}).check(promised); err != nil {
			return err
		}
		found := Predictions{Positions: site.positions, TopIDs: site.ids, TopTexts: site.texts}
		if r.asked.GetTopK() > 0 {
			found.TopLogprobs = site.top.join(int(r.asked.GetTopK()))
		}
		if tokens := len(r.asked.GetTokenIds()); tokens > 0 {
			found.TokenLogprobs = site.tokens.join(tokens)
		}
		if r.asked.GetNextToken() {
			found.NextTokenLogprobs = site.next.join()
		}
		into.Predictions[site.top.name] = found
	}
	return nil
}
