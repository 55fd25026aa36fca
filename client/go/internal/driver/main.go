// The driver of the conformance cases: a question in JSON on each line of standard input, an answer
// on each line of standard output. tests/conformance/README.md says what they are.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/protobuf/proto"

	"github.com/actserve/actserve/client/go"
)

type question struct {
	ID           int             `json:"id"`
	Operation    string          `json:"operation"`
	Client       clientConfig    `json:"client"`
	Method       string          `json:"method"`
	Name         string          `json:"name"`
	Request      json.RawMessage `json:"request"`
	Text         string          `json:"text"`
	Tensor       json.RawMessage `json:"tensor"`
	Shape        []int           `json:"shape"`
	Data         string          `json:"data"`
	Take         *int            `json:"take"`
	CancelAfter  *int            `json:"cancel_after"`
	CancelAfterS *float64        `json:"cancel_after_s"`
	Count        int             `json:"count"`
	CancelEvery  int             `json:"cancel_every"`
	Seconds      float64         `json:"seconds"`
	Concurrency  int             `json:"concurrency"`
	Sites        []string        `json:"sites"`
	Vector       vector          `json:"vector"`
	Coefficient  *float32        `json:"coefficient"`
	When         *condition      `json:"when"`
	Site         string          `json:"site"`
	Matrices     []matrix        `json:"matrices"`
	Dictionary   string          `json:"dictionary"`
	Features     []uint32        `json:"features"`
	K            int             `json:"k"`
	Top          *uint32         `json:"top"`
	Positions    string          `json:"positions"`
	Values       numbers         `json:"values"`
	Additions    numbers         `json:"additions"`
	Factors      numbers         `json:"factors"`
}

type clientConfig struct {
	Targets             []string          `json:"targets"`
	Token               string            `json:"token"`
	AllowPlaintextToken bool              `json:"allow_plaintext_token"`
	TLS                 *tlsFiles         `json:"tls"`
	TimeoutS            float64           `json:"timeout_s"`
	Model               string            `json:"model"`
	Metadata            map[string]string `json:"metadata"`
	Traceparent         string            `json:"traceparent"`
}

type tlsFiles struct {
	Authorities string `json:"ca_file"`
	Certificate string `json:"cert_file"`
	Key         string `json:"key_file"`
}

type answer struct {
	ID       int          `json:"id"`
	Result   any          `json:"result,omitempty"`
	Error    *errorAnswer `json:"error,omitempty"`
	Warnings []string     `json:"warnings"`
}

type errorAnswer struct {
	Code        string            `json:"code"`
	Reason      string            `json:"reason"`
	Message     string            `json:"message"`
	Field       string            `json:"field"`
	Metadata    map[string]string `json:"metadata"`
	RetryAfterS *float64          `json:"retry_after_s"`
	RequestID   string            `json:"request_id"`
}

func main() {
	otel.SetTextMapPropagator(propagation.TraceContext{})
	lines := bufio.NewReader(os.Stdin)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		asked := question{}
		if err := json.Unmarshal(line, &asked); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		told := asked.answer()
		written, err := json.Marshal(told)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(string(written))
	}
}

func (q *question) answer() *answer {
	told := &answer{ID: q.ID, Warnings: []string{}}
	var err error
	told.Result, err = q.do(func(warning string) { told.Warnings = append(told.Warnings, warning) })
	if message, ok := told.Result.(proto.Message); ok && err == nil {
		told.Result = toJSON(message)
	}
	if err != nil {
		told.Error = toError(err)
	}
	return told
}

func (q *question) do(warn func(string)) (any, error) {
	switch q.Operation {
	case "parse_site":
		return actserve.ParseSite(q.Text)
	case "parse_positions":
		return actserve.ParsePositions(q.Text)
	case "decode_tensor":
		return q.decodeTensor()
	case "encode_tensor":
		return q.encodeTensor()
	case "build_add":
		return q.buildAdd()
	case "build_features":
		return q.buildFeatures()
	case "build_feature_readout":
		return actserve.FeatureReadout(q.Name, q.Positions, q.Dictionary, q.Top, q.Sites...)
	case "streams":
		return q.streams(warn)
	}
	client, err := q.client(warn)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ctx, cancel := q.context()
	defer cancel()
	switch q.Operation {
	case "unary":
		return q.unary(ctx, client)
	case "list":
		return q.list(ctx, client)
	case "stream":
		return q.stream(ctx, cancel, client)
	case "collect":
		return q.collect(ctx, client)
	case "measure":
		return q.measure(ctx, client)
	case "watch":
		return q.watch(ctx, client)
	case "upload":
		return q.upload(ctx, client)
	case "graph":
		return q.graph(ctx, client)
	case "logit_effects":
		return q.logitEffects(ctx, client)
	case "wait":
		monitor, err := client.WaitForMonitor(ctx, q.Name)
		return object{"name": monitor.GetName()}, err
	}
	return nil, fmt.Errorf("there is no operation %q", q.Operation)
}

func (q *question) client(warn func(string)) (*actserve.Client, error) {
	config := actserve.Config{
		Targets:             q.Client.Targets,
		Token:               q.Client.Token,
		AllowPlaintextToken: q.Client.AllowPlaintextToken,
		Timeout:             seconds(q.Client.TimeoutS),
		Model:               q.Client.Model,
		Metadata:            q.Client.Metadata,
		Warn:                warn,
	}
	if files := q.Client.TLS; files != nil {
		var err error
		config.TLS, err = actserve.TLSFromFiles(files.Authorities, files.Certificate, files.Key)
		if err != nil {
			return nil, err
		}
	}
	return actserve.New(config)
}

func (q *question) context() (context.Context, context.CancelFunc) {
	ctx := context.Background()
	if q.Client.Traceparent != "" {
		carrier := propagation.MapCarrier{"traceparent": q.Client.Traceparent}
		ctx = otel.GetTextMapPropagator().Extract(ctx, carrier)
	}
	ctx, cancel := context.WithCancel(ctx)
	if q.CancelAfterS != nil {
		time.AfterFunc(seconds(*q.CancelAfterS), cancel)
	}
	return ctx, cancel
}

func seconds(count float64) time.Duration { return time.Duration(count * float64(time.Second)) }

func toError(err error) *errorAnswer {
	var failed *actserve.Error
	if !errors.As(err, &failed) {
		return &errorAnswer{Code: "NO_ERROR_OF_THE_CLIENT", Message: err.Error()}
	}
	told := &errorAnswer{
		Code:      code.Code(failed.Code).String(),
		Reason:    failed.Reason,
		Message:   failed.Message,
		Field:     failed.Field,
		Metadata:  failed.Metadata,
		RequestID: failed.RequestID,
	}
	if told.Metadata == nil {
		told.Metadata = map[string]string{}
	}
	if failed.RetryAfter != nil {
		after := failed.RetryAfter.Seconds()
		told.RetryAfterS = &after
	}
	return told
}
