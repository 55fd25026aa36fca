package actserve

import (
	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// Must returns what a function such as [ParseSite] or [RowReadout] makes, and panics if it is
// refused: for texts that stand in a program, not for those that people type.
func Must[T any](made T, err error) T {
	if err != nil {
		panic(err)
	}
	return made
}

// TextPrompt is a prompt of text, which the model's tokenizer splits.
func TextPrompt(text string) *actservev1.Prompt {
	return &actservev1.Prompt{Source: &actservev1.Prompt_Text{Text: text}}
}

// TokenPrompt is a prompt of token ids, used as they are.
func TokenPrompt(ids ...uint32) *actservev1.Prompt {
	return &actservev1.Prompt{Source: &actservev1.Prompt_TokenIds{
		TokenIds: &actservev1.TokenIds{Ids: ids},
	}}
}

// TurnsPrompt is a prompt of the turns of a conversation, oldest first, which the model's own chat
// template renders.
func TurnsPrompt(turns ...*actservev1.Turn) *actservev1.Prompt {
	return &actservev1.Prompt{Source: &actservev1.Prompt_Conversation{
		Conversation: &actservev1.Conversation{Turns: turns},
	}}
}

// Turn is one turn of a conversation; the role is "system", "user" or "assistant".
func Turn(role, content string) *actservev1.Turn {
	return &actservev1.Turn{Role: role, Content: &content}
}

// RowReadout reads rows of sites, as [ParseSite] takes them, at positions, as [ParsePositions] does.
// Results are found by its name.
func RowReadout(name, positions string, sites ...string) (*actservev1.Readout, error) {
	at, where, err := parseSomePlaces(positions, sites)
	if err != nil {
		return nil, err
	}
	return &actservev1.Readout{Name: name, Kind: &actservev1.Readout_Rows{
		Rows: &actservev1.RowReadout{Sites: at, Positions: where},
	}}, nil
}

// PredictionReadout reads the likeliest next tokens, topK of them: what the model says, without a
// site, and what it would say, seen from each of some (a logit lens).
func PredictionReadout(
	name, positions string, topK uint32, sites ...string,
) (*actservev1.Readout, error) {
	at, where, err := parsePlaces(positions, sites)
	if err != nil {
		return nil, err
	}
	return &actservev1.Readout{Name: name, Kind: &actservev1.Readout_Predictions{
		Predictions: &actservev1.PredictionReadout{Sites: at, Positions: where, TopK: topK},
	}}, nil
}

// KeepReadout keeps rows of sites on the server, for [ReplaceByKept] in a later call.
func KeepReadout(name, positions string, sites ...string) (*actservev1.Readout, error) {
	at, where, err := parseSomePlaces(positions, sites)
	if err != nil {
		return nil, err
	}
	return &actservev1.Readout{Name: name, Kind: &actservev1.Readout_Keep{
		Keep: &actservev1.KeepReadout{Sites: at, Positions: where},
	}}, nil
}

// SentVector is a vector that goes along with the request, as float32.
func SentVector(values []float32) (*actservev1.VectorSource, error) {
	tensor, err := EncodeTensor(values, len(values))
	if err != nil {
		return nil, err
	}
	return &actservev1.VectorSource{Source: &actservev1.VectorSource_Tensor{Tensor: tensor}}, nil
}

// StoredVector is a vector that the server has, by its name:
// models/{model}/steeringVectors/{steering_vector}.
func StoredVector(name string) *actservev1.VectorSource {
	return &actservev1.VectorSource{Source: &actservev1.VectorSource_SteeringVector{SteeringVector: name}}
}

// Add adds coefficient times a vector to every row of sites. Without a coefficient it is added once,
// and in a sweep as often as [actservev1.SweepVariant] says, which may name the sites too.
func Add(
	vector *actservev1.VectorSource, coefficient *float32, sites ...string,
) (*actservev1.Intervention, error) {
	at, err := parseSites(sites)
	if err != nil {
		return nil, err
	}
	return &actservev1.Intervention{
		Sites: at,
		Operation: &actservev1.Intervention_Add{
			Add: &actservev1.AddOperation{Vector: vector, Coefficient: coefficient},
		},
	}, nil
}

// AddVector adds coefficient times a vector, as wide as the rows of the site, to every row there.
func AddVector(site string, vector []float32, coefficient float32) (*actservev1.Intervention, error) {
	sent, err := SentVector(vector)
	if err != nil {
		return nil, err
	}
	return Add(sent, &coefficient, site)
}

// LinearProbe scores the rows of a site by how far they lie along a direction.
func LinearProbe(site string, direction *actservev1.VectorSource) (*actservev1.Probe, error) {
	at, err := ParseSite(site)
	if err != nil {
		return nil, err
	}
	return &actservev1.Probe{Site: at, Direction: direction}, nil
}

// Above makes an intervention act where the probe is above a bound, as its field When.
func Above(probe *actservev1.Probe, bound float32) *actservev1.Condition {
	return &actservev1.Condition{Probe: probe, Above: &bound}
}

// Below makes an intervention act where the probe is below a bound, as its field When.
func Below(probe *actservev1.Probe, bound float32) *actservev1.Condition {
	return &actservev1.Condition{Probe: probe, Below: &bound}
}

// ReplaceByKept puts rows that the server has kept under a name in place of those of a site, at
// positions as [ParsePositions] takes them: one row for each of them, or one for all.
func ReplaceByKept(site, positions, kept string) (*actservev1.Intervention, error) {
	at, where, err := parsePlaces(positions, []string{site})
	if err != nil {
		return nil, err
	}
	rows := &actservev1.KeptRows{Kept: &actservev1.KeptRows_Name{Name: kept}}
	return &actservev1.Intervention{
		Sites:     at,
		Positions: where,
		Operation: &actservev1.Intervention_Replace{Replace: &actservev1.ReplaceOperation{
			Rows: &actservev1.MatrixSource{Source: &actservev1.MatrixSource_Kept{Kept: rows}},
		}},
	}, nil
}

// parseSomePlaces is parsePlaces for what needs a site.
func parseSomePlaces(
	positions string, sites []string,
) ([]*actservev1.Site, *actservev1.PositionSelector, error) {
	if len(sites) == 0 {
		return nil, nil, invalid("SITE_INVALID", "", "a readout needs a site; give one after the "+
			"positions, such as resid_post.10")
	}
	return parsePlaces(positions, sites)
}

func parsePlaces(
	positions string, sites []string,
) ([]*actservev1.Site, *actservev1.PositionSelector, error) {
	where, err := ParsePositions(positions)
	if err != nil {
		return nil, nil, err
	}
	at, err := parseSites(sites)
	return at, where, err
}

func parseSites(sites []string) (at []*actservev1.Site, err error) {
	at = make([]*actservev1.Site, len(sites))
	for i, site := range sites {
		if at[i], err = ParseSite(site); err != nil {
			return nil, err
		}
	}
	return at, nil
}
