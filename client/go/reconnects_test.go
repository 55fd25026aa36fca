package actserve

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
)

func TestPausesOfAWatchDoubleUpToAQuarterOfAMinute(t *testing.T) {
	var longest []time.Duration
	for _, failures := range []int{0, 1, 2, 6, 40} {
		longest = append(longest, (&reconnects{failures: failures}).longest())
	}
	expected := []time.Duration{
		250 * time.Millisecond, 500 * time.Millisecond, time.Second, 15 * time.Second, 15 * time.Second,
	}
	if !slices.Equal(longest, expected) {
		t.Errorf("%v, not %v", longest, expected)
	}
}

func TestAWatchSaysThatItsServerIsGoneAndThatItIsBack(t *testing.T) {
	var said []string
	watch := reconnects{warn: func(message string) { said = append(said, message) }}
	gone := &Error{Code: codes.Unavailable, Message: "gone"}
	if watch.pause(context.Background(), gone) != gone {
		t.Error("a server that was never there is looked for")
	}
	watch.opened()
	for range 2 {
		if err := watch.pause(context.Background(), gone); err != nil {
			t.Fatal(err)
		}
	}
	watch.opened()
	if len(said) != 2 {
		t.Errorf("%q", said)
	}
}

func TestAWatchLooksForItsServerNoLongerThanItsContextAllows(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	watch := reconnects{warn: func(string) {}}
	watch.opened()
	told := 20 * time.Second
	gone := &Error{Code: codes.Unavailable, RetryAfter: &told}
	if failed := watch.pause(ctx, gone); failed != gone {
		t.Error(fmt.Sprint(failed))
	}
}
