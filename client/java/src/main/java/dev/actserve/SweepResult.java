package dev.actserve;

import dev.actserve.v1.RunSweepRequest;
import dev.actserve.v1.SweepCell;
import dev.actserve.v1.Usage;
import java.util.List;
import java.util.Optional;

/**
 * All that {@link ActserveClient#runSweep(RunSweepRequest)} gave.
 *
 * @param callId the server's id of the call, also in its logs; of the last one if the connection
 *     was lost meanwhile
 * @param cells in the order of the request: by prompt, variant, coefficient, site and position, the
 *     last of which varies first; without those that a resume token of the request stands for
 * @param usage what the call consumed; the last one if the connection was lost meanwhile
 */
public record SweepResult(String callId, List<Cell> cells, Usage usage) {

  /**
   * What came of one prompt under one variant, at one point of its grid.
   *
   * @param cell where in the request it is, and what came of it
   * @param error why the cell failed, if it did
   */
  public record Cell(SweepCell cell, Optional<ActserveException> error) {}
}
