package main

import (
	"encoding/json"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/actserve/actserve/client/go"
	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// vector is one to send along, the name of a stored one, or a feature of a dictionary.
type vector json.RawMessage

func (v *vector) UnmarshalJSON(data []byte) error {
	*v = append((*v)[:0], data...)
	return nil
}

type condition struct {
	Site       string          `json:"site"`
	Direction  vector          `json:"direction"`
	Bias       *float32        `json:"bias"`
	Above      *float32        `json:"above"`
	Below      *float32        `json:"below"`
	Aggregator json.RawMessage `json:"aggregator"`
}

func (q *question) buildAdd() (any, error) {
	vector, err := q.Vector.source()
	if err != nil {
		return nil, err
	}
	add, err := actserve.Add(vector, q.Coefficient, q.Sites...)
	if err == nil && q.When != nil {
		add.When, err = q.When.build()
	}
	return add, err
}

func (v vector) source() (*actservev1.VectorSource, error) {
	var name string
	if json.Unmarshal(v, &name) == nil {
		return actserve.StoredVector(name), nil
	}
	var sent struct {
		Data       string
		Dictionary string
		Index      uint32
	}
	if err := json.Unmarshal(v, &sent); err != nil {
		return nil, err
	}
	if sent.Dictionary != "" {
		return actserve.FeatureVector(sent.Dictionary, sent.Index), nil
	}
	values, err := floats(sent.Data)
	if err != nil {
		return nil, err
	}
	return actserve.SentVector(values)
}

func (c *condition) build() (*actservev1.Condition, error) {
	direction, err := c.Direction.source()
	if err != nil {
		return nil, err
	}
	probe, err := actserve.LinearProbe(c.Site, direction)
	if err != nil {
		return nil, err
	}
	probe.Bias = c.Bias
	built := &actservev1.Condition{}
	if c.Above != nil {
		built = actserve.Above(probe, *c.Above)
		built.Below = c.Below
	} else if c.Below != nil {
		built = actserve.Below(probe, *c.Below)
	}
	if len(c.Aggregator) > 0 {
		built.Aggregator = &actservev1.ScoreAggregator{}
		err = protojson.Unmarshal(c.Aggregator, built.Aggregator)
	}
	return built, err
}
