package actserve

import (
	"regexp"
	"strconv"
	"strings"

	actservev1 "github.com/actserve/actserve/client/go/actserve/v1"
)

// A layer is written in one way, with six digits at most.
var siteText = regexp.MustCompile(`^([a-z]+(?:_[a-z]+)*)(?:\.(0|-?[1-9][0-9]{0,5}))?$`)

// ParseSite returns the site of a text such as resid_post.10, resid_post.-1 (the last layer) or
// final_norm. The error is INVALID_ARGUMENT, SITE_INVALID.
func ParseSite(text string) (*actservev1.Site, error) {
	parts := siteText.FindStringSubmatch(text)
	if parts == nil {
		return nil, noSite(text)
	}
	hook, ok := actservev1.HookPoint_value[hookPrefix+strings.ToUpper(parts[1])]
	site := &actservev1.Site{HookPoint: actservev1.HookPoint(hook)}
	if !ok || hook == 0 || hasLayers(site.HookPoint) != (parts[2] != "") {
		return nil, noSite(text)
	}
	if parts[2] != "" {
		layer, err := strconv.ParseInt(parts[2], 10, 32)
		if err != nil {
			return nil, noSite(text)
		}
		layer32 := int32(layer)
		site.Layer = &layer32
	}
	return site, nil
}

// SiteName returns the text of a site.
func SiteName(site *actservev1.Site) string {
	name := strings.ToLower(strings.TrimPrefix(site.GetHookPoint().String(), hookPrefix))
	if site != nil && site.Layer != nil {
		name += "." + strconv.Itoa(int(*site.Layer))
	}
	return name
}

const hookPrefix = "HOOK_POINT_"

func hasLayers(hook actservev1.HookPoint) bool {
	switch hook {
	case actservev1.HookPoint_HOOK_POINT_EMBEDDING,
		actservev1.HookPoint_HOOK_POINT_FINAL_NORM,
		actservev1.HookPoint_HOOK_POINT_LOGITS:
		return false
	}
	return true
}

func noSite(text string) *Error {
	return invalid("SITE_INVALID", "", "%q is not a site; write a hook point and a layer, as in "+
		"resid_post.10 or resid_post.-1, or one of embedding, final_norm and logits", text)
}

// siteNames returns the texts of sites, as a request has them.
func siteNames(sites []*actservev1.Site) []string {
	names := make([]string, len(sites))
	for i, site := range sites {
		names[i] = SiteName(site)
	}
	return names
}
