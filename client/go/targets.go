package actserve

import (
	"net"
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
