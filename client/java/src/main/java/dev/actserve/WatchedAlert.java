package dev.actserve;

import dev.actserve.v1.Alert;

/**
 * An alert as {@link AlertStream} tells it.
 *
 * @param alert the alert
 * @param lostBefore how many alerts, of whatever monitor, are gone between the one before and this
 *     one: the reader came too late for them
 */
public record WatchedAlert(Alert alert, long lostBefore) {}
