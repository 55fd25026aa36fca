package actserve

import (
	"regexp"
	"strconv"
	"strings"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

var (
	listText = regexp.MustCompile(`^` + number + `(?:,` + number + `)*$`)
	spanText = regexp.MustCompile(`^(` + number + `)?:(` + number + `)?$`)
)

// ParsePositions returns the positions of a text: all, last (of the prompt), prompt or generated;
// 3, -1 (the last of the prompt) or 0,3,-1; 2:8, :-1 or 2: (a range, as in Python); text:France
// (every token of that text). The error is INVALID_ARGUMENT, POSITION_OUT_OF_RANGE.
func ParsePositions(text string) (*actservev1.PositionSelector, error) {
	switch text {
	case "all":
		return selector(&actservev1.PositionSelector_All{All: &actservev1.AllPositions{}}), nil
	case "last":
		return selector(&actservev1.PositionSelector_Last{Last: &actservev1.LastPosition{}}), nil
	case "prompt":
		return selector(&actservev1.PositionSelector_Prompt{Prompt: &actservev1.PromptPositions{}}), nil
	case "generated":
		return selector(&actservev1.PositionSelector_Generated{
			Generated: &actservev1.GeneratedPositions{},
		}), nil
	}
	if said, ok := strings.CutPrefix(text, "text:"); ok && said != "" {
		return selector(&actservev1.PositionSelector_Text{
			Text: &actservev1.TextPositions{Text: said},
		}), nil
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
		return selector(&actservev1.PositionSelector_Span{Span: span}), nil
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
	return selector(&actservev1.PositionSelector_List{List: list}), nil
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
