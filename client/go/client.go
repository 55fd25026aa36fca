package actserve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// DefaultTimeout is the deadline of a call whose context and client name none.
const DefaultTimeout = 600 * time.Second

// Config says how to reach a server. The zero Config reaches localhost:50051 in plaintext.
type Config struct {
	// Targets are the addresses of the server, host:port each or another target of gRPC. Several
	// are replicas: calls go to them in turn, and one that cannot be reached is passed over.
	// localhost:50051 when empty.
	Targets []string
	// TLS is how to encrypt: &tls.Config{} with the system's authorities, [TLSFromFiles] with your
	// own. Plaintext when nil.
	TLS *tls.Config
	// Token is the bearer token, sent with each call. None when empty.
	Token string
	// AllowPlaintextToken sends the token without TLS to other machines too, where the way is safe,
	// such as a tunnel. Otherwise only loopback addresses get one.
	AllowPlaintextToken bool
	// Timeout is the deadline of each call, with all its attempts, where its context has none; but for
	// [Client.WatchAlerts]. DefaultTimeout when zero, none when negative.
	Timeout time.Duration
	// Model is the name of a model, models/{model}, for the header by which a proxy in front of
	// several servers can choose one. No header when empty.
	Model string
	// Metadata are more headers for each call.
	Metadata map[string]string
	// Warn gets what the client warns of, such as a server that is older than it. [slog.Warn] when
	// nil.
	Warn func(message string)
	// DialOptions are more options of gRPC, such as a stats handler.
	DialOptions []grpc.DialOption
}

// Client calls an actserve server. It is safe for use by several goroutines at once. Close it at
// the end.
type Client struct {
	conn         *grpc.ClientConn
	calls        *calls
	models       actservev1.ModelServiceClient
	generation   actservev1.GenerationServiceClient
	kept         actservev1.KeptActivationsServiceClient
	explanations actservev1.ExplanationServiceClient
	vectors      actservev1.SteeringVectorServiceClient
	dictionaries actservev1.DictionaryServiceClient
	heads        actservev1.HeadServiceClient
	graphs       actservev1.AttributionGraphServiceClient
	sweeps       actservev1.SweepServiceClient
	monitors     actservev1.MonitorServiceClient
}

// New makes a client. It connects with the first call. The error is an [*Error]: INVALID_ARGUMENT
// if the Config cannot be right.
func New(config Config) (*Client, error) {
	calls, err := callsOf(config)
	if err != nil {
		return nil, err
	}
	addresses := []string{"localhost:" + defaultPort}
	if len(config.Targets) > 0 {
		addresses = make([]string, len(config.Targets))
	}
	for i, target := range config.Targets {
		if addresses[i], err = addressOf(target); err != nil {
			return nil, err
		}
		if len(config.Targets) > 1 {
			if err := checkReplica(addresses[i]); err != nil {
				return nil, err
			}
		}
	}
	remote := slices.IndexFunc(addresses, func(address string) bool { return !isLocal(address) })
	transport := insecure.NewCredentials()
	if config.TLS != nil {
		transport = credentials.NewTLS(config.TLS)
	} else if len(calls.headers.Get("authorization")) > 0 && !config.AllowPlaintextToken && remote >= 0 {
		return nil, invalid("FIELD_INVALID", "token", "the token would go to %s in plaintext, "+
			"where everyone on the way can read it; set Config.TLS, or "+
			"Config.AllowPlaintextToken where the way is safe", addresses[remote])
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithUserAgent(userAgent),
		grpc.WithUnaryInterceptor(calls.unary),
		grpc.WithStreamInterceptor(calls.stream),
		grpc.WithDisableRetry(), // The interceptors do it, for every language alike.
		// A name with many addresses is many replicas; gRPC would use only one.
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"` + policy + `": {}}]}`),
		// A server that comes back is found before a call gives up.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: 250 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 10 * time.Second,
			},
			MinConnectTimeout: 20 * time.Second,
		}),
		// A server that vanished without closing the connection would never be noticed while a call
		// waits for its first row.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: time.Minute, Timeout: 20 * time.Second}),
	}
	if remote < 0 {
		options = append(options, grpc.WithNoProxy()) // What is for this machine stays on it.
	}
	options = append(options, config.DialOptions...)
	target := addresses[0]
	if len(addresses) > 1 {
		found := resolverOf(addresses)
		options = append(options, grpc.WithResolvers(found))
		target = found.Scheme() + ":///replicas"
	}
	conn, dialErr := grpc.NewClient(target, options...)
	if dialErr != nil {
		return nil, invalid("FIELD_INVALID", "targets", "%s is not a target: %v", target, dialErr)
	}
	return &Client{
		conn:         conn,
		calls:        calls,
		models:       actservev1.NewModelServiceClient(conn),
		generation:   actservev1.NewGenerationServiceClient(conn),
		kept:         actservev1.NewKeptActivationsServiceClient(conn),
		explanations: actservev1.NewExplanationServiceClient(conn),
		vectors:      actservev1.NewSteeringVectorServiceClient(conn),
		dictionaries: actservev1.NewDictionaryServiceClient(conn),
		heads:        actservev1.NewHeadServiceClient(conn),
		graphs:       actservev1.NewAttributionGraphServiceClient(conn),
		sweeps:       actservev1.NewSweepServiceClient(conn),
		monitors:     actservev1.NewMonitorServiceClient(conn),
	}, nil
}

// Close ends the calls that still run, and frees all that the client holds. It returns nil, also
// when it is called again.
func (c *Client) Close() error {
	_ = c.conn.Close() // Its only error is that it was closed before.
	return nil
}

// Conn is what to make stubs of any service of the contract with, those without methods here too.
// Their calls get the same headers, deadlines, further attempts and errors:
//
//	weights := actservev1.NewWeightServiceClient(client.Conn())
func (c *Client) Conn() grpc.ClientConnInterface { return c.conn }

var (
	metadataKey   = regexp.MustCompile(`^[0-9A-Za-z_.-]+$`)
	metadataValue = regexp.MustCompile(`^[ -~]*$`)
)

func callsOf(config Config) (*calls, *Error) {
	for key, value := range config.Metadata {
		if !metadataKey.MatchString(key) || strings.HasPrefix(strings.ToLower(key), "grpc-") {
			return nil, invalid("FIELD_INVALID", "metadata", "%q cannot be the name of a header; write it of "+
				"letters, digits and -_., and not with grpc- at its beginning", key)
		}
		if !strings.HasSuffix(strings.ToLower(key), "-bin") && !metadataValue.MatchString(value) {
			return nil, invalid("FIELD_INVALID", "metadata", "the header %s has %q, which no header can "+
				"hold; write it in ASCII, or give it a name with -bin at its end", key, value)
		}
	}
	made := &calls{
		headers: metadata.New(config.Metadata),
		model:   headerModel(config.Model),
		timeout: config.Timeout,
		warn:    config.Warn,
	}
	if made.timeout == 0 {
		made.timeout = DefaultTimeout
	}
	if made.warn == nil {
		made.warn = func(message string) { slog.Warn(message) }
	}
	if config.Token != "" {
		for _, char := range config.Token {
			if char <= ' ' || char > '~' {
				return nil, invalid("FIELD_INVALID", "token", "the token holds %q, which no header can; "+
					"take away line breaks and spaces around it", char)
			}
		}
		made.headers.Set("authorization", "Bearer "+config.Token)
	}
	return made, nil
}

// headerModel writes the name of a model as a header can hold it.
func headerModel(model string) string {
	if model == "" {
		return ""
	}
	if !strings.HasPrefix(model, "models/") {
		model = "models/" + model
	}
	var written strings.Builder
	for i := range len(model) {
		char := model[i]
		switch {
		case 'a' <= char && char <= 'z', 'A' <= char && char <= 'Z', '0' <= char && char <= '9',
			strings.IndexByte("-._~/", char) >= 0:
			written.WriteByte(char)
		default:
			fmt.Fprintf(&written, "%%%02X", char)
		}
	}
	return written.String()
}

// TLSFromFiles reads PEM files: the authorities that the server's certificate may be of, and the
// certificate and key that the client shows. Each may be empty: the system's authorities, and no
// certificate.
func TLSFromFiles(authorities, certificate, key string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if authorities != "" {
		pem, err := os.ReadFile(authorities)
		if err != nil {
			return nil, invalidFile("tls", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, invalidFile("tls", errors.New(authorities+" holds no certificate in PEM form"))
		}
	}
	if certificate != "" || key != "" {
		pair, err := tls.LoadX509KeyPair(certificate, key)
		if err != nil {
			return nil, invalidFile("tls", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

func invalidFile(field string, cause error) *Error {
	failed := invalid("FIELD_INVALID", field, "%v", cause)
	failed.cause = cause
	return failed
}

// GetModel returns one model.
func (c *Client) GetModel(
	ctx context.Context, request *actservev1.GetModelRequest,
) (*actservev1.GetModelResponse, error) {
	return c.models.GetModel(ctx, request)
}

// Tokenize returns a prompt as the model would see it, without running it.
func (c *Client) Tokenize(
	ctx context.Context, request *actservev1.TokenizeRequest,
) (*actservev1.TokenizeResponse, error) {
	return c.models.Tokenize(ctx, request)
}

// GetKeptActivations describes what the server has kept, without the rows.
func (c *Client) GetKeptActivations(
	ctx context.Context, request *actservev1.GetKeptActivationsRequest,
) (*actservev1.GetKeptActivationsResponse, error) {
	return c.kept.GetKeptActivations(ctx, request)
}

// DeleteKeptActivations frees what the server has kept before it expires.
func (c *Client) DeleteKeptActivations(
	ctx context.Context, request *actservev1.DeleteKeptActivationsRequest,
) (*actservev1.DeleteKeptActivationsResponse, error) {
	return c.kept.DeleteKeptActivations(ctx, request)
}

// GetNla returns one natural language autoencoder.
func (c *Client) GetNla(
	ctx context.Context, request *actservev1.GetNlaRequest,
) (*actservev1.GetNlaResponse, error) {
	return c.explanations.GetNla(ctx, request)
}

// ScoreExplanations scores how well texts account for rows.
func (c *Client) ScoreExplanations(
	ctx context.Context, request *actservev1.ScoreExplanationsRequest,
) (*actservev1.ScoreExplanationsResponse, error) {
	return c.explanations.ScoreExplanations(ctx, request)
}

// SetExplanationBaseline measures from rows what scores are relative to, and stores it.
func (c *Client) SetExplanationBaseline(
	ctx context.Context, request *actservev1.SetExplanationBaselineRequest,
) (*actservev1.SetExplanationBaselineResponse, error) {
	return c.explanations.SetExplanationBaseline(ctx, request)
}

// DeleteExplanationBaseline forgets a baseline that SetExplanationBaseline stored.
func (c *Client) DeleteExplanationBaseline(
	ctx context.Context, request *actservev1.DeleteExplanationBaselineRequest,
) (*actservev1.DeleteExplanationBaselineResponse, error) {
	return c.explanations.DeleteExplanationBaseline(ctx, request)
}
