package actserve

import (
	"fmt"
	"strconv"
	"strings"
)

// Version is that of this client.
const Version = "0.1.0"

const (
	userAgent = "actserve-go/" + Version
	// versionHeader is in the trailing metadata of every call.
	versionHeader = "x-actserve-version"
)

// outdated returns what to warn of if a server of this version is older than the client; else "".
func outdated(server string) string {
	theirs, ok := minorVersion(server)
	ours, _ := minorVersion(Version)
	if !ok || theirs[0] > ours[0] || theirs[0] == ours[0] && theirs[1] >= ours[1] {
		return ""
	}
	return fmt.Sprintf("the server has version %s, which is older than that of this client, %s; "+
		"it refuses what it does not know, so upgrade it", server, Version)
}

// minorVersion returns the major and minor number of a version such as 1.2.3 or 1.2.0rc1.
func minorVersion(text string) (numbers [2]int, ok bool) {
	parts := strings.Split(text, ".")
	if len(parts) < 2 {
		return numbers, false
	}
	for i := range numbers {
		number, err := strconv.Atoi(parts[i])
		if err != nil || number < 0 {
			return numbers, false
		}
		numbers[i] = number
	}
	return numbers, true
}
