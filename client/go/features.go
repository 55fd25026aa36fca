package actserve

import (
	"google.golang.org/protobuf/proto"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// FeatureReadout reads what a dictionary makes of the rows of sites: the largest features of each row, so
// many, with [Rows].Indices, or without top all of them. A dictionary reads any site of its width, not its
// own alone. Its name is models/{model}/dictionaries/{dictionary}; sites and positions are those of
// [RowReadout].
func FeatureReadout(
	name, positions, dictionary string, top *uint32, sites ...string,
) (*actservev1.Readout, error) {
	readout, err := RowReadout(name, positions, sites...)
	if err != nil {
		return nil, err
	}
	readout.GetRows().Projection = &actservev1.Projection{Dictionary: dictionary, SendTop: top}
	return readout, nil
}

// FeatureVector is what a feature of a dictionary writes, a row of its decoder.
func FeatureVector(dictionary string, index uint32) *actservev1.VectorSource {
	return &actservev1.VectorSource{Source: &actservev1.VectorSource_Feature{
		Feature: &actservev1.DictionaryFeature{Dictionary: dictionary, Index: &index},
	}}
}

// ChangeFeatures changes features of the rows of sites, and keeps of a row what the dictionary does not
// explain. The changes are of [SetFeature], [AddToFeature] and [ScaleFeature], each of a different feature.
func ChangeFeatures(
	dictionary string, changes []*actservev1.FeatureChange, sites ...string,
) (*actservev1.Intervention, error) {
	at, err := parseSites(sites)
	if err != nil {
		return nil, err
	}
	return &actservev1.Intervention{
		Sites: at,
		Operation: &actservev1.Intervention_Features{
			Features: &actservev1.FeatureOperation{Dictionary: dictionary, Changes: changes},
		},
	}, nil
}

// SetFeature gives a feature a value, whatever it was.
func SetFeature(index uint32, value float32) *actservev1.FeatureChange {
	return &actservev1.FeatureChange{
		Index: proto.Uint32(index), Change: &actservev1.FeatureChange_Value{Value: value},
	}
}

// AddToFeature adds to a feature, also where it is zero.
func AddToFeature(index uint32, addition float32) *actservev1.FeatureChange {
	return &actservev1.FeatureChange{
		Index: proto.Uint32(index), Change: &actservev1.FeatureChange_Addition{Addition: addition},
	}
}

// ScaleFeature multiplies a feature: zero ablates it, and one changes nothing.
func ScaleFeature(index uint32, factor float32) *actservev1.FeatureChange {
	return &actservev1.FeatureChange{
		Index: proto.Uint32(index), Change: &actservev1.FeatureChange_Factor{Factor: factor},
	}
}
