package dev.actserve;

import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** The addresses of servers. */
final class Targets {
  private static final int DEFAULT_PORT = 50051;

  private static final Pattern HOST = Pattern.compile("[A-Za-z0-9._-]+");
  private static final Pattern HOST_AND_PORT =
      Pattern.compile("(?:\\[([^\\]]*)\\]|([^:\\[\\]]*))(?::[0-9]+)?");
  private static final Pattern LOOPBACK =
      Pattern.compile("localhost|127(\\.[0-9]{1,3}){3}|::1", Pattern.CASE_INSENSITIVE);

  private Targets() {}

  /** A target that gRPC takes; a host alone gets the port that servers have by default. */
  static String checked(String target) {
    boolean user = target.indexOf('@') >= 0 && !target.startsWith("unix:");
    if (target.isEmpty() || user || target.matches("https?://.*")) {
      throw ActserveException.invalid(
          "FIELD_INVALID",
          "target",
          "\"%s\" is not a target; give host:port alone, and tls() for TLS",
          target);
    }
    return HOST.matcher(target).matches() ? target + ":" + DEFAULT_PORT : target;
  }

  /** Whether all that is sent to a target stays on this machine, as far as its name tells. */
  static boolean isLocal(String target) {
    if (target.startsWith("unix:")) {
      return true;
    }
    // An authority, as in dns://server/name, is asked what a name means.
    String address = target.startsWith("dns:") ? target.replaceFirst("^dns:(///)?", "") : target;
    Matcher match = HOST_AND_PORT.matcher(address);
    if (!match.matches()) {
      return false;
    }
    String host = match.group(1) == null ? match.group(2) : match.group(1);
    return LOOPBACK.matcher(host).matches();
  }
}
