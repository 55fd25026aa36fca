package dev.actserve;

import dev.actserve.v1.Alert;
import dev.actserve.v1.FinishReason;
import dev.actserve.v1.GenerateRequest;
import dev.actserve.v1.SampleFinished;
import dev.actserve.v1.TokenLogprobs;
import dev.actserve.v1.TokenizedPrompt;
import dev.actserve.v1.Usage;
import java.util.List;

/**
 * All that {@link ActserveClient#generate(GenerateRequest)} has written and read.
 *
 * @param callId the server's id of the call, also in its logs
 * @param prompt as the model sees it
 * @param samples in their order
 * @param usage what the call consumed
 */
public record GenerateResult(
    String callId, TokenizedPrompt prompt, List<Sample> samples, Usage usage) {

  /**
   * One sample.
   *
   * @param text what was generated
   * @param tokenIds those of the prompt and the generated ones after them, as positions count
   * @param tokenTexts the generated tokens, each decoded alone
   * @param logprobs of each generated token; empty unless asked for
   * @param captured what was read
   * @param alerts those that monitors have the call told of, as they were raised
   * @param finished why it ended, what stopped it, such as a monitor, what monitors scored, as the
   *     request asks, and what each intervention did
   */
  public record Sample(
      String text,
      int[] tokenIds,
      List<String> tokenTexts,
      List<TokenLogprobs> logprobs,
      Captured captured,
      List<Alert> alerts,
      SampleFinished finished) {

    /**
     * Why it ended, such as {@code STOP} or {@code LENGTH}; a number that is not known as it is.
     */
    public String finishReason() {
      FinishReason reason = finished.getReason();
      return reason == FinishReason.UNRECOGNIZED
          ? Integer.toString(finished.getReasonValue())
          : reason.name().substring("FINISH_REASON_".length());
    }
  }
}
