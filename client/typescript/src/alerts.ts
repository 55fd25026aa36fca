import type { CallOptions } from "@connectrpc/connect";

import type { Calls } from "./calls.js";
import { cutShort } from "./errors.js";
import type { Alert } from "./gen/actserve/v1/alert_pb.js";
import type {
  WatchAlertsRequest,
  WatchAlertsResponse,
} from "./gen/actserve/v1/monitor_service_pb.js";
import { Reconnects } from "./reconnects.js";

/** An alert as `watchAlerts` tells it. */
export interface WatchedAlert {
  readonly alert: Alert;
  /**
   * How many alerts, of whatever monitor, are gone between the one before and this one: the reader
   * came too late for them.
   */
  readonly lostBefore: bigint;
}

/**
 * The alerts of a watch, over all its attempts.
 *
 * @param message moves on with each alert, so it is the watch's own
 */
export async function* watched(
  calls: Calls,
  message: WatchAlertsRequest,
  open: (message: WatchAlertsRequest, options: CallOptions) => AsyncIterable<WatchAlertsResponse>,
  options: CallOptions | undefined,
): AsyncGenerator<WatchedAlert, void, undefined> {
  let alerts = 0;
  let lost = 0n;
  const attempt = async function* (options: CallOptions) {
    lost = 0n; // It is told again.
    for await (const { event } of open(message, options)) {
      if (event.case === "alert") alerts++;
      if (event.case === "started" || event.case === "alert") {
        message.resumeToken = event.value.resumeToken;
        message.fromOldest = false;
      }
      yield event;
    }
    throw cutShort(); // It ends only when the call does.
  };
  // A watch is to last.
  const lasting = { ...options, timeoutMs: options?.timeoutMs ?? Infinity };
  for await (const event of calls.goingOn(attempt, () => alerts, lasting, new Reconnects())) {
    if (event.case === "lost") lost += event.value.alerts;
    if (event.case !== "alert") continue;
    const lostBefore = lost;
    lost = 0n;
    yield { alert: event.value, lostBefore };
  }
}
