package dev.actserve;

import dev.actserve.v1.MonitorScore;
import java.util.List;

/** What monitors scored in a sequence. */
final class Scores {
  private Scores() {}

  /**
   * Throws unless scores have of each token that counts the score as of it, if that was asked for,
   * and nothing of tokens otherwise.
   */
  static void check(List<MonitorScore> scores, boolean eachToken) {
    for (MonitorScore score : scores) {
      int count = eachToken ? score.getTokens() : 0;
      List<Integer> positions = score.getPositionsList();
      boolean ascend = positions.size() == count;
      for (int index = 1; ascend && index < count; index++) {
        ascend = Integer.compareUnsigned(positions.get(index - 1), positions.get(index)) < 0;
      }
      if (!ascend) {
        throw ActserveException.badResponse(
            "the server sent %s positions with the score of %s, not %s that ascend",
            positions.size(), score.getMonitor(), Integer.toUnsignedString(count));
      }
      if (!score.hasTokenScores() && count == 0) {
        continue;
      }
      int[] shape = Tensors.decode(score.getTokenScores()).shape();
      if (shape.length != 1 || shape[0] != count) {
        throw ActserveException.badResponse(
            "the server sent scores of tokens of %s of another number than %s",
            score.getMonitor(), Integer.toUnsignedString(count));
      }
    }
  }
}
