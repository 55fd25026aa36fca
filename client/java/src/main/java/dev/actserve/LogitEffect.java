package dev.actserve;

import java.util.List;

/**
 * Which tokens a feature makes likelier by itself: its direction goes through the final norm and
 * the unembedding, with no layer between (the direct effect; Elhage et al., "A Mathematical
 * Framework for Transformer Circuits", 2021).
 *
 * @param feature the index of the feature
 * @param top the tokens that it raises most, most first
 * @param bottom the tokens that it lowers most, most first
 */
public record LogitEffect(int feature, List<Token> top, List<Token> bottom) {

  /**
   * What a feature does to the logit of one token.
   *
   * @param id the token's
   * @param text the token, decoded alone
   * @param effect what one unit of the feature adds to the logit, as at a row whose elements have a
   *     mean square of one; at other rows all effects are larger or smaller by one factor
   */
  public record Token(int id, String text, float effect) {}
}
