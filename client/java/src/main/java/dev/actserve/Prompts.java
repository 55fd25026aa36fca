package dev.actserve;

import dev.actserve.v1.Conversation;
import dev.actserve.v1.Prompt;
import dev.actserve.v1.TokenIds;
import dev.actserve.v1.Turn;
import java.util.List;

/** Prompts. */
public final class Prompts {
  private Prompts() {}

  /** A text, tokenized by the served model's tokenizer with its special tokens. */
  public static Prompt text(String text) {
    return Prompt.newBuilder().setText(text).build();
  }

  /** Token ids, used as they are. */
  public static Prompt tokenIds(int... ids) {
    TokenIds.Builder tokens = TokenIds.newBuilder();
    for (int id : ids) {
      tokens.addIds(id);
    }
    return Prompt.newBuilder().setTokenIds(tokens).build();
  }

  /** A conversation of turns, rendered by the model's own chat template. */
  public static Prompt conversation(Turn... turns) {
    return Prompt.newBuilder()
        .setConversation(Conversation.newBuilder().addAllTurns(List.of(turns)))
        .build();
  }

  /**
   * One turn of a conversation.
   *
   * @param role such as {@code system}, {@code user} or {@code assistant}
   */
  public static Turn turn(String role, String content) {
    return Turn.newBuilder().setRole(role).setContent(content).build();
  }
}
