package actserve

import (
	"net"
	"slices"
	"strings"
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

// checkReplica tells whether a target can be one of several: their names are resolved by the
// network alone, so a scheme of gRPC would be taken for a host.
func checkReplica(address string) *Error {
	host, _, err := net.SplitHostPort(address)
	if isSocket(address) && !strings.HasPrefix(address, abstractScheme) || err == nil &&
		!strings.Contains(host, "/") && !slices.Contains(schemes, host) {
		return nil
	}
	return invalid("FIELD_INVALID", "targets",
		"%q cannot be one of several targets; give host:port or unix:path", address)
}

const (
	socketScheme   = "unix:"
	abstractScheme = "unix-abstract:"
)

// schemes are those that gRPC has, beside unix.
var schemes = []string{"dns", "passthrough", "unix-abstract", "vsock", "xds"}

// isSocket tells whether an address is a Unix socket, which has no host.
func isSocket(address string) bool {
	return strings.HasPrefix(address, socketScheme) || strings.HasPrefix(address, abstractScheme)
}

// isLocal tells whether all that is sent to an address stays on this machine, as far as its name
// tells.
func isLocal(address string) bool {
	if isSocket(address) {
		return true
	}
	if scheme, rest, _ := strings.Cut(address, ":"); scheme == "dns" || scheme == "passthrough" {
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
