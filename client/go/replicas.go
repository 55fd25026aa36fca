package actserve

import (
	"sync"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/roundrobin"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
)

// resolverOf resolves to all addresses at once. Each has its own name, which TLS checks.
func resolverOf(addresses []string) *manual.Resolver {
	found := manual.NewBuilderWithScheme("actserve")
	state := resolver.State{}
	for _, address := range addresses {
		name := address
		if isSocket(address) {
			name = "localhost"
		}
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{
			Addresses: []resolver.Address{{Addr: address, ServerName: name}},
		})
	}
	found.InitialState(state)
	return found
}

// policy is the name of the load balancing policy of a client: gRPC's round_robin, but the first
// calls wait until it is known of every replica whether it can be reached. Otherwise all calls that
// are made at once at the beginning would go to the replica that answers first.
const policy = "actserve_in_turn"

// maxHeldBack is for how long the first calls wait for the other replicas once one is there.
const maxHeldBack = time.Second

func init() { balancer.Register(inTurn{}) }

type inTurn struct{}

func (inTurn) Name() string { return policy }

func (inTurn) Build(conn balancer.ClientConn, options balancer.BuildOptions) balancer.Balancer {
	return balancer.Get(roundrobin.Name).Build(&holdingBack{ClientConn: conn}, options)
}

// holdingBack does not tell gRPC of the first replica before it is known of the others.
type holdingBack struct {
	balancer.ClientConn

	mu      sync.Mutex
	unknown int            // Replicas of which it is not known yet.
	state   balancer.State // The latest.
	timer   *time.Timer    // Nil before a replica is there.
	over    bool
}

func (h *holdingBack) NewSubConn(
	addresses []resolver.Address, options balancer.NewSubConnOptions,
) (balancer.SubConn, error) {
	h.mu.Lock()
	h.unknown++
	h.mu.Unlock()
	tell, known := options.StateListener, false
	options.StateListener = func(state balancer.SubConnState) {
		switch state.ConnectivityState {
		case connectivity.Ready, connectivity.TransientFailure, connectivity.Shutdown:
			if !known {
				known = true
				h.mu.Lock()
				h.unknown--
				h.mu.Unlock()
			}
		}
		tell(state) // Which may call UpdateState.
	}
	//lint:ignore SA1019 The notice is of the number of addresses, which is passed on as it comes.
	return h.ClientConn.NewSubConn(addresses, options)
}

func (h *holdingBack) UpdateState(state balancer.State) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state = state
	if !h.over && state.ConnectivityState == connectivity.Ready {
		if h.unknown > 0 {
			if h.timer == nil {
				h.timer = time.AfterFunc(maxHeldBack, h.end)
			}
			return
		}
		h.over = true
		if h.timer != nil {
			h.timer.Stop()
		}
	}
	h.ClientConn.UpdateState(state)
}

// end lets the first calls go to the replicas that are there.
func (h *holdingBack) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.over {
		h.over = true
		h.ClientConn.UpdateState(h.state)
	}
}
