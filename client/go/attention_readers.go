package actserve

import (
	"slices"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

const noKey = -1

// maxFilled is up to how many weights, 256 MiB, a head may have more than twice those that were
// sent: a few sent for many tokens are filled up with zeros.
const maxFilled = 1 << 26

type attentionReader struct {
	asked *actservev1.AttentionReadout
	heads map[uint32]*headPieces
}

// headPieces are the chunks of one head. Each has as many columns as its own queries see.
type headPieces struct {
	queries []uint32
	chunks  []*actservev1.AttentionChunk
	columns int // Of the widest.
	sent    int // Weights.
}

func newAttentionReader(asked *actservev1.AttentionReadout) reader {
	heads := map[uint32]*headPieces{}
	for _, head := range asked.GetHeads() {
		heads[head] = &headPieces{}
	}
	return &attentionReader{asked: asked, heads: heads}
}

func (r *attentionReader) sparse() bool { return r.asked.TopK != nil }

func (r *attentionReader) add(sent any) error {
	chunk, ok := sent.(*actservev1.AttentionChunk)
	if !ok {
		return unasked
	}
	head := r.heads[chunk.GetHead()]
	if head == nil {
		return badResponse("sent attention of head %d, which was not asked for", chunk.GetHead())
	}
	shape, err := checkedShape(chunk.GetWeights())
	if err != nil {
		return err
	}
	queries := chunk.GetQueries()
	if len(shape) != 2 || shape[0] != len(queries) || shape[1] < r.needed(queries) ||
		r.sparse() && uint64(shape[1]) > uint64(r.asked.GetTopK()) {
		return badResponse("sent attention of head %d in shape %v for %d queries",
			chunk.GetHead(), shape, len(queries))
	}
	if keys := chunk.GetKeys(); r.sparse() && (len(keys) != shape[0]*shape[1] ||
		len(keys) > 0 && slices.Min(keys) < noKey) {
		return badResponse("sent %d keys of head %d for attention in shape %v",
			len(keys), chunk.GetHead(), shape)
	}
	head.sent += shape[0] * shape[1]
	head.columns = max(head.columns, shape[1])
	head.queries = append(head.queries, queries...)
	head.chunks = append(head.chunks, chunk)
	return nil
}

// needed is how many columns there must be: a query sees itself and all before it.
func (r *attentionReader) needed(queries []uint32) int {
	if len(queries) == 0 {
		return 0
	}
	seen := uint64(slices.Max(queries)) + 1
	if r.sparse() {
		seen = min(seen, uint64(r.asked.GetTopK()))
	}
	return int(seen)
}

func (r *attentionReader) finish(promised []uint32, run int, into *Readout) error {
	into.Attention = map[uint32]Attention{}
	for number, head := range r.heads {
		if !slices.Equal(head.queries, promised) {
			return badResponse("sent attention of head %d of %d queries, and not, once and in order, of the "+
				"%d that it announced", number, len(head.queries), len(promised))
		}
		columns := run
		if r.sparse() {
			// As many as were asked for; but never more than were sent or could be.
			columns = max(head.columns, int(min(uint64(r.asked.GetTopK()), uint64(run))))
		} else if head.columns > run {
			return badResponse("sent attention of head %d to %d keys, but %d tokens were run",
				number, head.columns, run)
		}
		if len(promised)*columns > 2*head.sent+maxFilled {
			return badResponse("sent only %d weights of head %d, of %d queries that see %d keys",
				head.sent, number, len(promised), columns)
		}
		into.Attention[number] = head.join(columns, r.sparse())
	}
	return nil
}

func (h *headPieces) join(columns int, sparse bool) Attention {
	all := Attention{
		Queries: h.queries,
		Weights: Tensor{
			Shape: []int{len(h.queries), columns},
			Data:  make([]float32, len(h.queries)*columns),
		},
	}
	if sparse {
		all.Keys = slices.Repeat([]int32{noKey}, len(all.Weights.Data))
	}
	first := 0
	for _, chunk := range h.chunks {
		weights := joined([]*actservev1.Tensor{chunk.GetWeights()}).Data
		width := int(chunk.GetWeights().GetShape()[1])
		for query := range chunk.GetQueries() {
			// Keys beyond the last column of a chunk are not seen by its queries: zeros.
			to := (first + query) * columns
			copy(all.Weights.Data[to:], weights[query*width:(query+1)*width])
			if sparse {
				copy(all.Keys[to:], chunk.GetKeys()[query*width:(query+1)*width])
			}
		}
		first += len(chunk.GetQueries())
	}
	return all
}

type summaryReader struct {
	asked  *actservev1.AttentionSummaryReadout
	layers []uint32
	found  map[uint32]AttentionSummary
}

func newSummaryReader(
	asked *actservev1.AttentionSummaryReadout, started *actservev1.ReadoutStarted,
) (reader, error) {
	layers := started.GetLayers()
	distinct := slices.Compact(slices.Sorted(slices.Values(layers)))
	wanted := len(asked.GetLayers())
	if len(distinct) != len(layers) || len(layers) == 0 || wanted > 0 && wanted != len(layers) {
		return nil, badResponse("announced summaries of the layers %v, not those that were asked for", layers)
	}
	return &summaryReader{asked: asked, layers: layers, found: map[uint32]AttentionSummary{}}, nil
}

func (r *summaryReader) add(sent any) error {
	chunk, ok := sent.(*actservev1.AttentionSummaryChunk)
	if !ok {
		return unasked
	}
	layer := chunk.GetLayer()
	if _, twice := r.found[layer]; twice || !slices.Contains(r.layers, layer) {
		return badResponse("sent the summary of layer %d twice or unasked", layer)
	}
	heads := 0
	if shape := chunk.GetEntropy().GetShape(); len(shape) == 1 {
		heads = int(shape[0])
	}
	offsets, keys := len(r.asked.GetOffsets()), int(r.asked.GetTopKeys())
	if heads == 0 || len(chunk.GetOffsetQueries()) != offsets || len(chunk.GetTopKeys()) != heads*keys ||
		keys > 0 && slices.Min(chunk.GetTopKeys()) < noKey {
		return badResponse("sent a summary of layer %d with %d heads, %d counts of queries at offsets and "+
			"%d keys, but %d offsets and %d keys of each head were asked for",
			layer, heads, len(chunk.GetOffsetQueries()), len(chunk.GetTopKeys()), offsets, keys)
	}
	summary := AttentionSummary{
		Queries:              chunk.GetQueries(),
		PreviousTokenQueries: chunk.GetPreviousTokenQueries(),
		InductionQueries:     chunk.GetInductionQueries(),
		OffsetQueries:        chunk.GetOffsetQueries(),
		TopKeys:              chunk.GetTopKeys(),
	}
	for _, each := range []struct {
		name  string
		sent  *actservev1.Tensor
		into  *Tensor
		shape []int
	}{
		{"previous_token", chunk.GetPreviousToken(), &summary.PreviousToken, []int{heads}},
		{"current_token", chunk.GetCurrentToken(), &summary.CurrentToken, []int{heads}},
		{"first_token", chunk.GetFirstToken(), &summary.FirstToken, []int{heads}},
		{"induction", chunk.GetInduction(), &summary.Induction, []int{heads}},
		{"entropy", chunk.GetEntropy(), &summary.Entropy, []int{heads}},
		{"distance", chunk.GetDistance(), &summary.Distance, []int{heads}},
		{"at_offsets", chunk.GetAtOffsets(), &summary.AtOffsets, []int{heads, offsets}},
		{"top_key_means", chunk.GetTopKeyMeans(), &summary.TopKeyMeans, []int{heads, keys}},
	} {
		if each.shape[len(each.shape)-1] == 0 && each.sent == nil {
			continue // Not asked for.
		}
		found, err := DecodeTensor(each.sent)
		if err != nil {
			return err
		}
		if !slices.Equal(found.Shape, each.shape) {
			return badResponse("sent %s of layer %d in shape %v, not %v",
				each.name, layer, found.Shape, each.shape)
		}
		*each.into = found
	}
	r.found[layer] = summary
	return nil
}

func (r *summaryReader) finish(promised []uint32, _ int, into *Readout) error {
	for _, layer := range r.layers {
		summary, ok := r.found[layer]
		if !ok || int64(summary.Queries) != int64(len(promised)) {
			return badResponse("sent a summary of layer %d of %d queries, but announced %d",
				layer, summary.Queries, len(promised))
		}
	}
	into.AttentionSummary = r.found
	return nil
}

type attributionReader struct {
	asked     *actservev1.LogitAttributionReadout
	constants []float32
	sites     []pieces
	heads     []int // By site; zero where it has none, and before the first chunk.
}

func newAttributionReader(
	asked *actservev1.LogitAttributionReadout, started *actservev1.ReadoutStarted,
) (reader, error) {
	constants := started.GetTargetConstants()
	if len(constants) > 0 && len(constants) != len(asked.GetTargets()) {
		return nil, badResponse("announced constants of %d targets, but %d were asked for",
			len(constants), len(asked.GetTargets()))
	}
	return &attributionReader{
		asked:     asked,
		constants: constants,
		sites:     piecesOf(siteNames(asked.GetSites())),
		heads:     make([]int, len(asked.GetSites())),
	}, nil
}

func (r *attributionReader) add(sent any) error {
	chunk, ok := sent.(*actservev1.LogitAttributionChunk)
	if !ok {
		return unasked
	}
	site, err := at(r.sites, chunk.GetSiteIndex())
	if err != nil {
		return err
	}
	// Only the server knows how many heads there are; they are always as many.
	heads := &r.heads[chunk.GetSiteIndex()]
	if shape := chunk.GetContributions().GetShape(); *heads == 0 && len(shape) == 3 {
		*heads = int(shape[1])
	}
	return site.add(chunk.GetPositions(), chunk.GetContributions(), r.shape(int(chunk.GetSiteIndex()))...)
}

// shape is that of one row.
func (r *attributionReader) shape(site int) []int {
	targets := len(r.asked.GetTargets())
	if r.asked.GetSites()[site].GetHookPoint() == actservev1.HookPoint_HOOK_POINT_Z {
		return []int{r.heads[site], targets}
	}
	return []int{targets}
}

func (r *attributionReader) finish(promised []uint32, _ int, into *Readout) error {
	into.LogitAttribution = map[string]LogitAttribution{}
	for i := range r.sites {
		site := &r.sites[i]
		if err := site.check(promised); err != nil {
			return err
		}
		into.LogitAttribution[site.name] = LogitAttribution{
			Tensor:          site.join(r.shape(i)...),
			Positions:       site.positions,
			TargetConstants: r.constants,
		}
	}
	return nil
}
