package actserve

import (
	"net"
	"strings"

	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
)

const defaultPort = "50051"

// addressOf returns a target with the port that servers have by default if it names none.
func addressOf(target string) (string, *Error) {
	if target == "" || strings.HasPrefix(target, "http://") || strings.HasPrefix(target, "https://") {
		return "", invalid("FIELD_INVALID", "targets",
			"%q is not a target; give host:port, and Config.TLS for TLS", target)
	}
	if strings.HasPrefix(target, "[") && strings.HasSuffix(target, "]") {
		return target + ":" + defaultPort, nil
	}
	if !strings.ContainsAny(target, ":/") {
		return net.JoinHostPort(target, defaultPort), nil
	}
	return target, nil
}

// isLocal tells whether all that is sent to an address stays on this machine, as far as its name
// tells.
func isLocal(address string) bool {
	scheme, rest, _ := strings.Cut(address, ":")
	switch scheme {
	case "unix", "unix-abstract":
		return true
	case "dns", "passthrough":
		// In dns://server/name a server of somebody else says what the name means.
		address = strings.TrimPrefix(rest, "///")
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// replicas resolves to all addresses at once. Each has its own name, which TLS checks.
func replicas(addresses []string) *manual.Resolver {
	found := manual.NewBuilderWithScheme("actserve")
	state := resolver.State{}
	for _, address := range addresses {
		name := address
		if strings.HasPrefix(address, "unix") {
			name = "localhost"
		}
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{
			Addresses: []resolver.Address{{Addr: address, ServerName: name}},
		})
	}
	found.InitialState(state)
	return found
}
