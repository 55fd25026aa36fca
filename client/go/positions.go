package actserve

import (
	"regexp"
	"strconv"
	"strings"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// number is how a position is written: one way for each.
const number = `(?:0|-?[1-9][0-9]*)`

var (
	listText = regexp.MustCompile(`^` + number + `(?:,` + number + `)*$`)
	spanText = regexp.MustCompile(`^(` + number + `)?:(` + number + `)?$`)
)

// ParsePositions returns the positions of a text: all, last (of the prompt), prompt or generated;
// 3, -1 (the last of the prompt) or 0,3,-1; 2:8, :-1 or 2: (a range, as in Python); text:France
// (every token of that text). The error is INVALID_ARGUMENT, POSITION_OUT_OF_RANGE.
func ParsePositions(text string) (*actservev1.PositionSelector, error) {
	if selector := namedPositions(text); selector != nil {
		return selector, nil
	}
	if bounds := spanText.FindStringSubmatch(text); bounds != nil {
		span := &actservev1.PositionRange{}
		for i, bound := range []**int32{&span.Start, &span.End} {
			if written := bounds[i+1]; written != "" {
				position, err := parsePosition(written)
				if err != nil {
					return nil, err
				}
				*bound = &position
			}
		}
		return &actservev1.PositionSelector{
			Selection: &actservev1.PositionSelector_Span{Span: span},
		}, nil
	}
	if !listText.MatchString(text) {
		return nil, noPositions(text)
	}
	list := &actservev1.PositionList{}
	for written := range strings.SplitSeq(text, ",") {
		position, err := parsePosition(written)
		if err != nil {
			return nil, err
		}
		list.Positions = append(list.Positions, position)
	}
	return &actservev1.PositionSelector{
		Selection: &actservev1.PositionSelector_List{List: list},
	}, nil
}

// namedPositions returns nil for a text that begins with none of the names.
func namedPositions(text string) *actservev1.PositionSelector {
	selector := &actservev1.PositionSelector{}
	said, isText := strings.CutPrefix(text, "text:")
	switch {
	case text == "all":
		selector.Selection = &actservev1.PositionSelector_All{All: &actservev1.AllPositions{}}
	case text == "last":
		selector.Selection = &actservev1.PositionSelector_Last{Last: &actservev1.LastPosition{}}
	case text == "prompt":
		selector.Selection = &actservev1.PositionSelector_Prompt{Prompt: &actservev1.PromptPositions{}}
	case text == "generated":
		selector.Selection = &actservev1.PositionSelector_Generated{
			Generated: &actservev1.GeneratedPositions{},
		}
	case isText && said != "":
		selector.Selection = &actservev1.PositionSelector_Text{
			Text: &actservev1.TextPositions{Text: said},
		}
	default:
		return nil
	}
	return selector
}

func parsePosition(text string) (int32, error) {
	position, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		return 0, noPositions(text)
	}
	return int32(position), nil
}

func noPositions(text string) *Error {
	return invalid("POSITION_OUT_OF_RANGE", "", "%q are not positions; write all, last, prompt or "+
		"generated, numbers such as 0,3,-1, a range such as 2:8, or text: and a text of the prompt", text)
}
