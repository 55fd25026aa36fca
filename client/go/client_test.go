package actserve_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/actserve/actserve/client/go"
	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// server answers what the tests below need, and remembers the headers of the last call.
type server struct {
	actservev1.UnimplementedModelServiceServer
	actservev1.UnimplementedWeightServiceServer
	actservev1.UnimplementedSteeringVectorServiceServer
	requestIDs []string     // Of the vectors that were to be combined.
	failures   atomic.Int32 // Calls that end with UNAVAILABLE before one that does not.
	attempts   atomic.Int32
	headers    metadata.MD
	left       time.Duration // Until the deadline; zero without one.
}

func (s *server) see(ctx context.Context) error {
	s.attempts.Add(1)
	s.headers, _ = metadata.FromIncomingContext(ctx)
	s.left = 0
	if deadline, ok := ctx.Deadline(); ok {
		s.left = time.Until(deadline)
	}
	if s.failures.Add(-1) >= 0 {
		return status.Error(codes.Unavailable, "full")
	}
	return nil
}

func (s *server) ReadTokenRows(
	_ *actservev1.ReadTokenRowsRequest, stream grpc.ServerStreamingServer[actservev1.ReadTokenRowsResponse],
) error {
	if err := s.see(stream.Context()); err != nil {
		return err
	}
	return stream.Send(&actservev1.ReadTokenRowsResponse{})
}

func (s *server) GetModel(
	ctx context.Context, _ *actservev1.GetModelRequest,
) (*actservev1.GetModelResponse, error) {
	return &actservev1.GetModelResponse{}, s.see(ctx)
}

func (s *server) CombineSteeringVectors(
	ctx context.Context, request *actservev1.CombineSteeringVectorsRequest,
) (*actservev1.CombineSteeringVectorsResponse, error) {
	s.requestIDs = append(s.requestIDs, request.GetRequestId())
	return &actservev1.CombineSteeringVectorsResponse{}, s.see(ctx)
}

func serve(t *testing.T, config actserve.Config) (*server, *actserve.Client) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served, serving := &server{}, grpc.NewServer()
	actservev1.RegisterModelServiceServer(serving, served)
	actservev1.RegisterWeightServiceServer(serving, served)
	actservev1.RegisterSteeringVectorServiceServer(serving, served)
	go serving.Serve(listener)
	t.Cleanup(serving.Stop)
	config.Targets = []string{listener.Addr().String()}
	client, err := actserve.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return served, client
}

func TestCallsOfRawStubsAreLikeAllOthers(t *testing.T) {
	served, client := serve(t, actserve.Config{Token: "s3cret", Model: "m"})
	served.failures.Store(1)
	weights := actservev1.NewWeightServiceClient(client.Conn())
	stream, err := weights.ReadTokenRows(t.Context(), &actservev1.ReadTokenRowsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	if attempts := served.attempts.Load(); attempts != 2 {
		t.Errorf("the server saw %d attempts, not 2", attempts)
	}
	for header, want := range map[string]string{
		"authorization": "Bearer s3cret", "x-actserve-model": "models/m",
	} {
		if got := served.headers.Get(header); len(got) != 1 || got[0] != want {
			t.Errorf("header %s is %q, not %q", header, got, want)
		}
	}
	dictionaries := actservev1.NewDictionaryServiceClient(client.Conn())
	_, err = dictionaries.GetDictionary(t.Context(), &actservev1.GetDictionaryRequest{})
	var failed *actserve.Error
	if !errors.As(err, &failed) || failed.Code != codes.Unimplemented {
		t.Errorf("a service that is not there is %v", err)
	}
}

func TestEveryCallThatMakesAVectorHasAnIdOfItsOwn(t *testing.T) {
	served, client := serve(t, actserve.Config{})
	request := &actservev1.CombineSteeringVectorsRequest{SteeringVectorId: "calm"}
	for range 2 {
		if _, err := client.CombineSteeringVectors(t.Context(), request); err != nil {
			t.Fatal(err)
		}
	}
	if ids := served.requestIDs; ids[0] == ids[1] || ids[0] == "" {
		t.Errorf("two calls have the ids %q", ids)
	}
	if id := request.GetRequestId(); id != "" {
		t.Errorf("the caller's request was given the id %q", id)
	}
}

func TestHeadersOfAContextCountBeforeThoseOfTheClient(t *testing.T) {
	served, client := serve(t, actserve.Config{Metadata: map[string]string{"X-Team": "vision"}})
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-team", "audio")
	if _, err := client.GetModel(ctx, &actservev1.GetModelRequest{}); err != nil {
		t.Fatal(err)
	}
	if got := served.headers.Get("x-team"); len(got) != 1 || got[0] != "audio" {
		t.Errorf("the header is %q", got)
	}
}

func TestDeadlines(t *testing.T) {
	short, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	long, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	for name, test := range map[string]struct {
		timeout  time.Duration
		ctx      context.Context
		from, to time.Duration
	}{
		"is ten minutes by default":                 {0, t.Context(), 9 * time.Minute, 10 * time.Minute},
		"can be switched off":                       {-1, t.Context(), 0, 0},
		"is the context's if that has one":          {0, short, 50 * time.Second, time.Minute},
		"is the context's even if that is later on": {0, long, 59 * time.Minute, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			served, client := serve(t, actserve.Config{Timeout: test.timeout})
			if _, err := client.GetModel(test.ctx, &actservev1.GetModelRequest{}); err != nil {
				t.Fatal(err)
			}
			if served.left < test.from || served.left > test.to {
				t.Errorf("%v were left", served.left)
			}
		})
	}
}

func TestErrorsOfAContextAreFound(t *testing.T) {
	_, client := serve(t, actserve.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := client.GetModel(ctx, &actservev1.GetModelRequest{})
	if !errors.Is(err, context.Canceled) || status.Code(err) != codes.Canceled {
		t.Errorf("a cancelled call is %v", err)
	}
}

func TestWhatAConfigCannotBe(t *testing.T) {
	for field, configs := range map[string][]actserve.Config{
		"targets": {
			{Targets: []string{"unix-abstract:443", "localhost:1"}, Token: "s3cret"},
			{Targets: []string{"localhost:1", "dns:///localhost:2"}},
			{Targets: []string{"localhost:1", "passthrough:localhost:2"}},
		},
		"token":    {{Targets: []string{"unix-host.example.com:1", "localhost:1"}, Token: "s3cret"}},
		"metadata": {{Metadata: map[string]string{"a b": ""}}, {Metadata: map[string]string{"a": "\n"}}},
	} {
		for _, config := range configs {
			_, err := actserve.New(config)
			var failed *actserve.Error
			if !errors.As(err, &failed) || failed.Field != field {
				t.Errorf("%v: %v", config, err)
			}
		}
	}
}

func TestAClientMayBeClosedTwice(t *testing.T) {
	client := actserve.Must(actserve.New(actserve.Config{Targets: []string{"unix:/tmp/a", "localhost:1"}}))
	for range 2 {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestAServerThatIsNotThereIsNamed(t *testing.T) {
	client := actserve.Must(actserve.New(actserve.Config{
		Targets: []string{"unix:" + filepath.Join(t.TempDir(), "none")}, Timeout: 100 * time.Millisecond,
	}))
	defer client.Close()
	_, err := client.GetModel(t.Context(), &actservev1.GetModelRequest{})
	if err == nil || !strings.Contains(err.Error(), "check that a server runs there") {
		t.Errorf("it is %v", err)
	}
}

func TestWhatWasNotReadIsNoZero(t *testing.T) {
	read := actserve.Readouts{"acts": {Rows: map[string]actserve.Rows{"resid_post.1": {}}}}
	if _, err := read.Rows("acts", "resid_post.1"); err != nil {
		t.Error(err)
	}
	for missing, has := range map[[2]string]string{
		{"act", "resid_post.1"}: "acts", {"acts", "resid_post.2"}: "resid_post.1",
	} {
		_, err := read.Rows(missing[0], missing[1])
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), has) {
			t.Errorf("%v: %v", missing, err)
		}
	}
	if _, err := actserve.RowReadout("x", "last"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("rows of no site are %v", err)
	}
}

func TestWhereATokenMayGoInPlaintext(t *testing.T) {
	for target, may := range map[string]bool{
		"localhost": true, "localhost:1": true, "127.0.0.9:1": true, "[::1]": true, "[::1]:1": true,
		"unix:/tmp/a": true, "unix:///tmp/a": true, "dns:///localhost:1": true,
		"example.com": false, "10.0.0.1:1": false, "0.0.0.0:1": false, "[::]:1": false,
		"dns://example.com/localhost:1": false, "dns:///example.com:1": false, "127.0.0.1.a.com:1": false,
	} {
		client, err := actserve.New(actserve.Config{Targets: []string{target}, Token: "s3cret"})
		if may != (err == nil) {
			t.Errorf("%s: %v", target, err)
		}
		if err == nil {
			client.Close()
		}
	}
}

// The code of the README is that of files that are compiled: between `// [name]` and `// [/name]`.
func TestTheReadmeShowsCodeThatIsCompiled(t *testing.T) {
	marked := regexp.MustCompile(`(?s)(\t*)// \[([a-z]+)\]\n(.*?)\t*// \[/[a-z]+\]\n`)
	sections := map[string]bool{}
	files, _ := filepath.Glob("examples/*/main.go")
	for _, file := range append(files, "example_test.go") {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range marked.FindAllStringSubmatch(string(source), -1) {
			indent := regexp.MustCompile(`(?m)^` + found[1])
			sections[strings.TrimSpace(indent.ReplaceAllString(found[3], ""))] = true
		}
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	if len(shown) == 0 {
		t.Error("the README shows no code")
	}
	for _, snippet := range shown {
		if !sections[strings.TrimSpace(snippet[1])] {
			t.Errorf("no file has between marks:\n%s", snippet[1])
		}
	}
}
