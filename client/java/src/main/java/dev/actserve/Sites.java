package dev.actserve;

import dev.actserve.v1.HookPoint;
import dev.actserve.v1.Site;
import java.util.EnumSet;
import java.util.Locale;
import java.util.Set;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Sites, as people write them: {@code resid_post.10}, {@code resid_post.-1}, {@code final_norm}.
 */
public final class Sites {
  private static final String PREFIX = "HOOK_POINT_";

  /** Hook points that exist once, not at every layer. */
  private static final Set<HookPoint> LAYERLESS =
      EnumSet.of(
          HookPoint.HOOK_POINT_EMBEDDING,
          HookPoint.HOOK_POINT_FINAL_NORM,
          HookPoint.HOOK_POINT_LOGITS);

  // ASCII digits without a leading zero: one site has one spelling.
  private static final Pattern SPELLING = Pattern.compile("([a-z_]+)(?:\\.(0|-?[1-9][0-9]{0,5}))?");

  private Sites() {}

  /**
   * The site of a text: a hook point in lower case and, but for {@code embedding}, {@code
   * final_norm} and {@code logits}, a layer, which counts from the last when negative.
   *
   * @throws ActserveException {@code SITE_INVALID} for any other text
   */
  public static Site parse(String text) {
    Matcher match = SPELLING.matcher(text);
    HookPoint hookPoint = match.matches() ? hookPoint(match.group(1)) : null;
    if (hookPoint == null || LAYERLESS.contains(hookPoint) != (match.group(2) == null)) {
      throw ActserveException.invalid(
          "SITE_INVALID",
          "",
          "\"%s\" is not a site; write a hook point and a layer, as in resid_post.10, or one of"
              + " embedding, final_norm and logits",
          text);
    }
    Site.Builder site = Site.newBuilder().setHookPoint(hookPoint);
    if (match.group(2) != null) {
      site.setLayer(Integer.parseInt(match.group(2)));
    }
    return site.build();
  }

  /** How people write a site; the number of a hook point that this client does not know. */
  public static String format(Site site) {
    String hookPoint =
        site.getHookPoint() == HookPoint.UNRECOGNIZED
            ? Integer.toString(site.getHookPointValue())
            : name(site.getHookPoint());
    return site.hasLayer() ? hookPoint + "." + site.getLayer() : hookPoint;
  }

  private static HookPoint hookPoint(String name) {
    for (HookPoint each : HookPoint.values()) {
      boolean known = each != HookPoint.HOOK_POINT_UNSPECIFIED && each != HookPoint.UNRECOGNIZED;
      if (known && name(each).equals(name)) {
        return each;
      }
    }
    return null;
  }

  private static String name(HookPoint hookPoint) {
    return hookPoint.name().substring(PREFIX.length()).toLowerCase(Locale.ROOT);
  }
}
